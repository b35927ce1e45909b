"""Two scheduler processes in one queue group on a real server; one is killed under load."""

import asyncio
import signal
import sys
from asyncio.subprocess import Process

import pytest

from shared.bus import Delivery
from shared.bus_nats import NatsBus
from shared.errors import BusError, BusTimeout
from shared.registry import Heartbeat, PoolRegistry
from shared.schemas.place import PLACE_REPLY, Plan, SetPolicy
from shared.schemas.segment import Segment
from shared.subjects import Subjects
from tests.unit.global_sched.pool_stage import instance, question

NUM_REQUESTS = 400


async def start_scheduler(url: str, pool: str, name: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.global_sched", "--policy", "colocated"),
        *("--nats", url, "--pool", pool, "--id", name),
    )


async def ask_until_answered(bus: NatsBus, subjects: Subjects, request_id: str) -> Plan:
    """As a gateway does: no answer in time, ask again under the next epoch."""
    for epoch in range(1, 20):
        place = question(request_id, epoch=epoch)
        try:
            reply = await bus.request(subjects.place, place, 0.5)
        except BusTimeout:
            continue
        except BusError:
            await asyncio.sleep(0.05)
            continue
        plan = PLACE_REPLY.validate_json(reply.data)
        assert isinstance(plan, Plan), plan
        return plan
    raise AssertionError(f"{request_id} was never answered")


@pytest.mark.faults
async def test_killing_one_of_two_schedulers_loses_no_request(nats_url: str, pool: str) -> None:
    subjects = Subjects(pool)
    bus = await NatsBus.connect(nats_url, "test")
    registry = PoolRegistry(bus, subjects)
    background = [asyncio.create_task(registry.run())]
    for name in ("a", "b"):
        beat = Heartbeat(bus, subjects, instance(name))
        background.append(asyncio.create_task(beat.run()))
    segments: dict[tuple[str, int], list[str]] = {}

    async def on_segment(delivery: Delivery) -> None:
        segment = Segment.model_validate_json(delivery.data)
        key = (segment.request.request_id, segment.epoch)
        segments.setdefault(key, []).append(delivery.subject)

    await bus.subscribe(subjects.segment("*"), on_segment)
    schedulers = [await start_scheduler(nats_url, pool, name) for name in ("s1", "s2")]
    try:
        both = registry.wait_until(lambda r: len(r.schedulers) == 2)
        await asyncio.wait_for(both, 20)
        waiting = asyncio.Semaphore(32)
        done = 0

        async def one(number: int) -> Plan:
            nonlocal done
            async with waiting:
                plan = await ask_until_answered(bus, subjects, f"r{number}")
                done += 1
                if done == NUM_REQUESTS // 4:
                    schedulers[0].kill()
                return plan

        plans = await asyncio.wait_for(
            asyncio.gather(*(one(number) for number in range(NUM_REQUESTS))), 60
        )
        assert {plan.scheduler_id for plan in plans} == {"s1", "s2"}
        late = [plan.scheduler_id for plan in plans if plan.epoch > 1]
        assert set(late) <= {"s2"}
        for plan in plans:
            assert segments[plan.request_id, plan.epoch] == [subjects.segment(plan.alpha_id)]
        reply = await bus.request(subjects.all_schedulers, SetPolicy(policy="round_robin"), 5.0)
        assert b'"ok":true' in reply.data
        # A clean stop removes the record at once; the killed one's expires.
        schedulers[1].send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(schedulers[1].wait(), 10) == 0
        await asyncio.wait_for(registry.wait_until(lambda r: not r.schedulers), 15)
    finally:
        for process in schedulers:
            if process.returncode is None:
                process.kill()
            await process.wait()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await bus.close()
