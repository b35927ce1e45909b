"""The coordinator on a bus: starts, aborts, records, deadlines and losses reach who they should."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from services.kv_transfer.actor import KvTransferActor
from services.kv_transfer.settings import KvTransferSettings
from shared.bus import Delivery, Records
from shared.bus_memory import MemoryBus
from shared.clock import SystemClock
from shared.registry import PoolRegistry, record_key
from shared.schemas.handoff import (
    HANDOFF_COMMAND,
    HandoffAbort,
    HandoffEvent,
    HandoffOpen,
    HandoffPhase,
    HandoffRecord,
    HandoffStart,
    Side,
    Transport,
)
from shared.schemas.registry import InstanceRecord
from shared.subjects import Subjects
from tests.unit.global_sched.pool_stage import GEOMETRY, instance

SUBJECTS = Subjects("default")
PAIR = (instance("a"), instance("b"))


def opening(
    handoff_id: str = "r.1",
    epoch: int = 1,
    deadline_s: float = 60.0,
    transport: Transport | None = None,
) -> HandoffOpen:
    return HandoffOpen(
        handoff_id=handoff_id,
        request_id="r",
        epoch=epoch,
        alpha_id="a",
        beta_id="b",
        cut=33,
        deadline_s=SystemClock().unix_s() + deadline_s,
        transport=transport,
    )


@dataclass
class Scene:
    bus: MemoryBus
    actor: KvTransferActor
    starts: dict[str, HandoffStart] = field(default_factory=dict)
    aborts: dict[str, HandoffAbort] = field(default_factory=dict)
    records: list[HandoffRecord] = field(default_factory=list)
    heard: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def bucket(self) -> Records:
        return await self.bus.records(SUBJECTS.registry_bucket, 60.0)

    async def register(self, *records: InstanceRecord) -> None:
        bucket = await self.bucket()
        for record in records:
            await bucket.put(record_key(record), record)

    async def open(self, message: HandoffOpen) -> None:
        await self.bus.publish(SUBJECTS.handoff("c"), message)

    async def event(
        self, side: Side, phase: HandoffPhase, epoch: int = 1, **figures: float
    ) -> None:
        event = HandoffEvent.model_validate(
            {
                "handoff_id": "r.1",
                "epoch": epoch,
                "side": side,
                "instance_id": "a" if side == "alpha" else "b",
                "phase": phase,
                "at_s": 0.0,
                **figures,
            }
        )
        await self.bus.publish(SUBJECTS.handoff("c"), event)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self.heard:
            await self.heard.wait_for(condition)

    async def on_control(self, delivery: Delivery) -> None:
        command = HANDOFF_COMMAND.validate_json(delivery.data)
        async with self.heard:
            target: dict[str, HandoffStart] | dict[str, HandoffAbort]
            target = self.starts if isinstance(command, HandoffStart) else self.aborts
            target[delivery.subject.split(".")[3]] = command  # type: ignore[assignment]
            self.heard.notify_all()

    async def on_record(self, delivery: Delivery) -> None:
        async with self.heard:
            self.records.append(HandoffRecord.model_validate_json(delivery.data))
            self.heard.notify_all()


@contextlib.asynccontextmanager
async def coordinator(*records: InstanceRecord, **settings: object) -> AsyncIterator[Scene]:
    bus = MemoryBus()
    options = KvTransferSettings.model_validate(
        {"id": "c", "drain_s": 0.1, "registry_patience_s": 5.0, **settings}
    )
    scene = Scene(bus, KvTransferActor(bus, options))
    await bus.subscribe(SUBJECTS.control("*"), scene.on_control)
    await bus.subscribe(SUBJECTS.handoff_events, scene.on_record)
    await scene.register(*records)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(scene.actor.run())
        await scene.actor.ready.wait()
        try:
            yield scene
        finally:
            scene.actor.stop()
    await bus.close()


async def test_both_sides_are_told_the_link_and_the_record_says_what_moved() -> None:
    async with coordinator(*PAIR) as scene:
        await scene.open(opening())
        await scene.until(lambda: len(scene.starts) == 2)
        alpha, beta = scene.starts["a"], scene.starts["b"]
        assert (alpha.side, alpha.peer_id, alpha.peer_addresses) == ("alpha", "b", ["b:1"])
        assert (beta.side, beta.peer_id, beta.peer_addresses) == ("beta", "a", ["a:1"])
        assert alpha.transport == beta.transport == "shm"
        for side, phase in (("alpha", "first_chunk"), ("alpha", "sent_all")):
            await scene.event(side, phase, num_bytes=900, transfer_s=0.25)  # type: ignore[arg-type]
        await scene.event("beta", "complete", num_bytes=900, exposed_s=0.125)
        await scene.event("beta", "adopted")
        await scene.event("alpha", "released")
        await scene.until(lambda: len(scene.records) == 1)
        (record,) = scene.records
        assert (record.outcome, record.transport, record.num_bytes) == ("adopted", "shm", 900)
        assert (record.transfer_s, record.exposed_s) == (0.25, 0.125)
        assert record.kv_blocks_orphaned == 0 and len(scene.actor.book) == 0


async def test_the_transport_the_opening_asks_for_is_used() -> None:
    async with coordinator(*PAIR) as scene:
        await scene.open(opening(transport="tcp"))
        await scene.until(lambda: len(scene.starts) == 2)
        assert scene.starts["a"].transport == "tcp"


@pytest.mark.parametrize(
    ("records", "message", "why"),
    [
        (
            (PAIR[0], instance("b", geometry=GEOMETRY.model_copy(update={"block_size": 32}))),
            opening(),
            "block_size 16 / 32",
        ),
        (PAIR, opening(transport="nccl"), "'nccl' does not join"),
        (PAIR[:1], opening(), "instance b is not in the registry"),
    ],
)
async def test_what_cannot_be_handed_over_is_refused_at_both_sides_with_the_reason(
    records: tuple[InstanceRecord, ...], message: HandoffOpen, why: str
) -> None:
    async with coordinator(*records, registry_patience_s=0.05) as scene:
        await scene.open(message)
        await scene.until(lambda: len(scene.aborts) == 2 and len(scene.records) == 1)
        assert all(why in abort.reason for abort in scene.aborts.values())
        assert scene.records[0].outcome == "failed" and why in scene.records[0].detail
        assert scene.starts == {}


async def test_an_instance_the_registry_shows_a_moment_later_is_waited_for() -> None:
    async with coordinator(PAIR[0]) as scene:
        await scene.open(opening())
        await scene.register(PAIR[1])
        await scene.until(lambda: len(scene.starts) == 2)
        assert scene.aborts == {}


async def test_beyond_the_bound_handoffs_are_refused() -> None:
    async with coordinator(*PAIR, max_open=1) as scene:
        await scene.open(opening("r.1"))
        await scene.open(opening("other.1"))
        await scene.until(lambda: len(scene.aborts) == 2 and len(scene.records) == 1)
        assert scene.records[0].handoff_id == "other.1"
        assert "the bound is 1" in scene.records[0].detail


async def test_a_lost_instance_calls_its_handoffs_off_at_the_other_side() -> None:
    async with coordinator(*PAIR) as scene:
        await scene.open(opening())
        await scene.until(lambda: len(scene.starts) == 2)
        await (await scene.bucket()).delete("instance.a")
        await scene.until(lambda: "b" in scene.aborts)
        assert "instance a was lost" in scene.aborts["b"].reason
        await scene.event("beta", "recomputed")
        await scene.until(lambda: len(scene.records) == 1)
        assert scene.records[0].outcome == "failed"


async def test_past_the_deadline_both_sides_are_told_and_past_the_lease_blocks_are_orphans() -> (
    None
):
    async with coordinator(*PAIR, lease_s=0.1) as scene:
        await scene.open(opening(deadline_s=0.1))
        await scene.until(lambda: len(scene.aborts) == 2)
        assert "deadline passed" in scene.aborts["a"].reason
        await scene.event("beta", "recomputed")
        await scene.until(lambda: len(scene.records) == 1)
        assert scene.records[0].kv_blocks_orphaned == 3  # alpha's 33 tokens in blocks of 16


async def test_events_of_another_epoch_change_nothing() -> None:
    async with coordinator(*PAIR) as scene:
        await scene.open(opening(epoch=2))
        await scene.until(lambda: len(scene.starts) == 2)
        await scene.event("beta", "adopted", epoch=1)
        await scene.event("alpha", "released", epoch=1)
        await scene.event("beta", "not_needed", epoch=2)
        await scene.event("alpha", "released", epoch=2)
        await scene.until(lambda: len(scene.records) == 1)
        assert (scene.records[0].outcome, scene.records[0].epoch) == ("not_needed", 2)


async def test_a_stopping_coordinator_leaves_the_registry_and_sees_its_handoffs_through() -> None:
    async with coordinator(*PAIR, drain_s=5.0) as scene:
        registry = PoolRegistry(scene.bus, SUBJECTS)
        watch = asyncio.create_task(registry.run())
        await asyncio.wait_for(registry.wait_until(lambda r: "c" in r.coordinators), 5)
        await scene.open(opening())
        await scene.until(lambda: len(scene.starts) == 2)
        scene.actor.stop()
        await asyncio.wait_for(registry.wait_until(lambda r: not r.coordinators), 5)
        await scene.event("alpha", "ended")
        await scene.event("beta", "cancelled")
        await scene.until(lambda: len(scene.records) == 1)
        assert scene.records[0].outcome == "ended"
        watch.cancel()
