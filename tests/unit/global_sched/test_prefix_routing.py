"""Scheduler replicas and simulated instances on one bus: a prompt goes where its beginning is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from services.global_sched.actor import SchedulerActor
from services.global_sched.policy.views import InstanceView
from services.global_sched.settings import SchedulerSettings
from shared.schemas.place import PLACE_REPLY, Place, Plan
from shared.schemas.segment import ControlReply, ResetPrefixCache
from tests.unit.global_sched.pool_stage import question
from tests.unit.gpu_instance.stage import SMALL, SUBJECTS, Stage, on_stage

ROOMY = SMALL.model_copy(update={"num_blocks": 1024, "max_model_len": 4096})
PROMPT = 512


@dataclass
class Pool:
    stage: Stage
    schedulers: list[SchedulerActor]

    async def place(self, place: Place) -> Plan:
        reply = await self.stage.bus.request(SUBJECTS.place, place, 5.0)
        plan = PLACE_REPLY.validate_json(reply.data)
        assert isinstance(plan, Plan), plan
        return plan

    async def until_known(self, place: Place, known: dict[str, int]) -> None:
        """Every replica believes that these tokens are cached."""
        async with asyncio.timeout(5):
            for scheduler in self.schedulers:
                while scheduler.prefixes.cached_tokens(place.request) != known:
                    await asyncio.sleep(0.01)

    async def until_idle(self) -> None:
        """Every replica has been told that no instance has anything left to do."""
        async with asyncio.timeout(5):
            for scheduler in self.schedulers:
                while not all(
                    map(_is_idle, scheduler.pool.view(0.0, scheduler.pool.ready()).instances)
                ):
                    await asyncio.sleep(0.01)


def _is_idle(view: InstanceView) -> bool:
    return not (view.num_decodes or view.pending_decodes or view.outstanding_prefill_tokens)


@contextlib.asynccontextmanager
async def pool(num_schedulers: int = 2) -> AsyncIterator[Pool]:
    async with on_stage(ROOMY) as stage, asyncio.TaskGroup() as tasks:
        schedulers = [
            SchedulerActor(stage.bus, SchedulerSettings(id=f"s{n}", policy="colocated"))
            for n in range(num_schedulers)
        ]
        for scheduler in schedulers:
            tasks.create_task(scheduler.run())
            await scheduler.ready.wait()
        for scheduler in schedulers:
            async with asyncio.timeout(5):
                await scheduler.registry.wait_until(lambda r: len(r.instances) == 2)
        try:
            yield Pool(stage, schedulers)
        finally:
            for scheduler in schedulers:
                scheduler.stop()


async def test_a_second_request_with_the_same_long_beginning_goes_to_who_holds_it() -> None:
    async with pool() as p:
        usual = (await p.place(question("short", prompt=8))).alpha_id
        other = "b" if usual == "a" else "a"
        first = question("first", prompt=PROMPT, avoid=(usual,))
        assert (await p.place(first)).alpha_id == other
        await p.stage.until_ended(2)
        await p.until_known(first, {other: PROMPT - PROMPT % 64})
        await p.until_idle()
        plans = [await p.place(question(f"n{n}", prompt=PROMPT + 20)) for n in range(2)]
        assert {plan.scheduler_id for plan in plans} == {"s0", "s1"}
        assert {plan.alpha_id for plan in plans} == {other}
        assert {plan.predicted_cached_tokens for plan in plans} == {PROMPT}
        await p.stage.until_ended(4)
        found = {
            delta.request_id: delta.num_cached_tokens
            for frame in p.stage.frames
            for delta in frame.deltas
            if delta.num_cached_tokens is not None
        }
        assert (found["first"], found["n0"], found["n1"]) == (0, PROMPT, PROMPT)


async def test_a_cache_that_was_reset_is_not_believed_in_any_more() -> None:
    async with pool() as p:
        place = question("first", prompt=PROMPT)
        holder = (await p.place(place)).alpha_id
        await p.until_known(place, {holder: PROMPT})
        await p.stage.until_ended(1)
        reply = await p.stage.bus.request(SUBJECTS.control(holder), ResetPrefixCache(), 5.0)
        assert ControlReply.model_validate_json(reply.data).ok
        await p.until_known(place, {})


async def test_a_scheduler_that_came_later_is_told_the_whole() -> None:
    async with pool(1) as p, asyncio.TaskGroup() as tasks:
        place = question("first", prompt=PROMPT)
        holder = (await p.place(place)).alpha_id
        await p.until_known(place, {holder: PROMPT})
        late = SchedulerActor(p.stage.bus, SchedulerSettings(id="late", policy="colocated"))
        tasks.create_task(late.run())
        await late.ready.wait()
        p.schedulers.append(late)
        await p.until_known(place, {holder: PROMPT})
        late.stop()


async def test_an_instance_that_left_holds_nothing() -> None:
    async with pool() as p:
        place = question("first", prompt=PROMPT)
        holder = (await p.place(place)).alpha_id
        await p.until_known(place, {holder: PROMPT})
        await p.stage.until_ended(1)
        p.stage.instances[holder].stop()
        await p.until_known(place, {})
