"""What did not come back after a load."""

from collections.abc import Callable

import pytest

from dynaserve.accounts import accounts_of, holdings, leaks, until_balanced
from shared.bus import Delivery
from shared.bus_memory import MemoryBus
from shared.errors import BusTimeout
from shared.schemas.segment import EngineAccounts
from shared.subjects import Subjects

AT_REST = EngineAccounts(
    instance_id="i",
    num_blocks=10,
    free_blocks=9,
    num_requests=0,
    open_handoffs=0,
    kv_blocks_orphaned=0,
    staging_bytes_in_use=0,
    tasks=5,
    batcher_mode="slo",
)
BUSY = AT_REST.model_copy(update={"num_requests": 2, "free_blocks": 4, "tasks": 6})
SUBJECTS = Subjects("p")


def answering(bus: MemoryBus, *accounts: EngineAccounts) -> Callable[[Delivery], object]:
    """An instance that tells one after the other, the last for ever."""
    left = list(accounts)

    async def answer(delivery: Delivery) -> None:
        await bus.respond(delivery, left.pop(0) if len(left) > 1 else left[0])

    return answer


def test_an_instance_at_rest_holds_nothing() -> None:
    assert holdings({"i": AT_REST}) == []
    assert leaks({"i": AT_REST}, {"i": AT_REST}) == []


@pytest.mark.parametrize(
    "name", ["num_requests", "open_handoffs", "kv_blocks_orphaned", "staging_bytes_in_use"]
)
def test_whatever_is_held_is_named(name: str) -> None:
    held = AT_REST.model_copy(update={name: 3})
    assert holdings({"i": held}) == [f"i: {name} 3"]


def test_blocks_and_tasks_that_did_not_come_back_are_named_with_both_figures() -> None:
    found = leaks({"i": AT_REST}, {"i": BUSY})
    assert found == ["i: num_requests 2", "i: 9 -> 4 free blocks", "i: 5 -> 6 tasks"]


async def test_waiting_ends_when_everything_came_back() -> None:
    bus = MemoryBus()
    await bus.subscribe(SUBJECTS.control("i"), answering(bus, AT_REST, BUSY, BUSY, AT_REST))  # type: ignore[arg-type]
    before = await accounts_of(bus, SUBJECTS, ["i"])
    assert await until_balanced(bus, SUBJECTS, before, 5) == {"i": AT_REST}
    await bus.close()


async def test_waiting_ends_with_what_is_missing() -> None:
    bus = MemoryBus()
    await bus.subscribe(SUBJECTS.control("i"), answering(bus, BUSY))  # type: ignore[arg-type]
    with pytest.raises(BusTimeout, match="9 -> 4 free blocks"):
        await until_balanced(bus, SUBJECTS, {"i": AT_REST}, 0.1)
    await bus.close()
