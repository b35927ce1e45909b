import asyncio

import pytest

from dynaserve.bench.observation import Observation
from dynaserve.bench.replay import Replay, closed_loop
from tests.unit.dynaserve.bench.made import request


async def test_requests_are_sent_when_due_though_none_is_answered() -> None:
    sent: list[Observation] = []
    all_sent = asyncio.Event()

    async def send(seen: Observation) -> None:
        seen.sent_s = asyncio.get_running_loop().time()
        sent.append(seen)
        if len(sent) == 5:
            all_sent.set()
        await all_sent.wait()
        seen.outcome = "ok"

    seen = await Replay(send).run([request(f"r-{n}", 0.01 * n) for n in range(5)], 0.02)

    assert [each.request.request_id for each in sent] == [f"r-{n}" for n in range(5)]
    assert all(each.late_s >= -0.001 for each in seen)
    assert [each.measured for each in seen] == [False, False, True, True, True]


async def test_stopping_hangs_up_and_sends_nothing_more() -> None:
    hung_up: list[str] = []

    async def send(seen: Observation) -> None:
        if seen.request.request_id == "r-2":
            seen.outcome = "failed"
            return
        try:
            await asyncio.Event().wait()
        finally:
            hung_up.append(seen.request.request_id)

    replay = Replay(send, on_done=lambda seen: replay.stop())
    async with asyncio.timeout(10):
        seen = await replay.run([request(f"r-{n}", 0.0 if n < 3 else 1e6) for n in range(5)])

    assert replay.stopped
    assert sorted(hung_up) == ["r-0", "r-1"]
    assert [each.outcome for each in seen] == ["unfinished"] * 2 + ["failed"] + ["unfinished"] * 2


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_than_the_limit_are_under_way(limit: int) -> None:
    running, most = 0, 0
    full = asyncio.Event()

    async def send(seen: Observation) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == limit:
            full.set()
        await full.wait()
        running -= 1

    await Replay(send, max_concurrency=limit).run([request(f"r-{n}") for n in range(9)])

    assert most == limit


async def test_each_user_of_a_closed_loop_waits_for_its_answer() -> None:
    running, most = 0, 0

    async def send(seen: Observation) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    seen = await closed_loop(send, [request(f"r-{n}") for n in range(10)], 4)

    assert most == 4
    assert {each.request.request_id for each in seen} == {f"r-{n}" for n in range(10)}
