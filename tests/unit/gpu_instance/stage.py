"""Two simulated instances on an in-memory bus, with everything they say written down."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from services.gpu_instance.actor import InstanceActor
from services.gpu_instance.engine.seam import Engine
from services.gpu_instance.engine.simulated import SimulatedEngine
from services.gpu_instance.engine.simulated_settings import SimulationSettings
from services.gpu_instance.settings import InstanceSettings
from shared.bus import Delivery
from shared.bus_memory import MemoryBus
from shared.clock import SystemClock
from shared.schemas.handoff import COORDINATOR, HandoffEvent, HandoffStart, Side
from shared.schemas.message import pack_tokens
from shared.schemas.request import GenerationRequest, Slo
from shared.schemas.segment import HandoffRef, Role, Segment
from shared.schemas.tokens import GATEWAY, SegmentFailed, SegmentTiming, TokenFrame
from shared.subjects import Subjects

SUBJECTS = Subjects("default")
SMALL = SimulationSettings(
    num_blocks=64,
    block_size=16,
    max_model_len=512,
    max_num_batched_tokens=64,
    max_num_seqs=8,
    vocab_size=1000,
    speedup=200.0,
    batcher="static:64",
)


def segment(
    request_id: str = "r",
    role: Role = "whole",
    cut: int | None = None,
    *,
    prompt: int = 40,
    max_tokens: int = 12,
    epoch: int = 1,
    peer: str = "b",
    sampling: dict[str, object] | None = None,
    expires_s: float = 60.0,
    handoff_s: float = 30.0,
    output: list[int] | None = None,
) -> Segment:
    """A segment of the request ``request_id`` whose prompt is a function of its id."""
    now_s = SystemClock().unix_s()
    ids = [(sum(request_id.encode()) * 31 + i) % 997 for i in range(prompt)]
    request = GenerationRequest.model_validate(
        {
            "request_id": request_id,
            "prompt_token_ids": pack_tokens(ids),
            "output_token_ids": pack_tokens(output or []),
            "sampling_params": sampling,
            "max_tokens": max_tokens,
            "arrival_time_s": now_s,
            "deadline_s": now_s + expires_s,
            "slo": Slo(ttft_s=1.0, tbt_s=0.1),
        }
    )
    handoff = None
    if cut is not None:
        handoff = HandoffRef(
            handoff_id=f"{request_id}.{epoch}",
            cut=cut,
            peer_id=peer,
            coordinator_id="c",
            deadline_s=now_s + handoff_s,
        )
    return Segment(role=role, epoch=epoch, gateway_id="g", request=request, handoff=handoff)


def handoff_start(alpha: Segment, side: Side) -> HandoffStart:
    """What the coordinator tells one side of the handoff of ``alpha``."""
    assert alpha.handoff is not None
    return HandoffStart(
        handoff_id=alpha.handoff.handoff_id,
        request_id=alpha.request.request_id,
        epoch=alpha.epoch,
        side=side,
        peer_id="b" if side == "alpha" else "a",
        peer_addresses=["simulated"],
        transport="shm",
        deadline_s=alpha.handoff.deadline_s,
        lease_s=1.0,
    )


@dataclass
class Stage:
    """The bus, the instances by id, and what was heard at gateway ``g`` and coordinator ``c``."""

    bus: MemoryBus
    instances: dict[str, InstanceActor] = field(default_factory=dict)
    frames: list[TokenFrame] = field(default_factory=list)
    failures: list[SegmentFailed] = field(default_factory=list)
    timings: list[SegmentTiming] = field(default_factory=list)
    events: list[HandoffEvent] = field(default_factory=list)
    _heard: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def listen(self) -> None:
        await self.bus.subscribe(SUBJECTS.gateway("g"), self._on_gateway)
        await self.bus.subscribe(SUBJECTS.handoff("c"), self._on_coordinator)

    async def send(self, instance_id: str, message: Segment) -> None:
        await self.bus.publish(SUBJECTS.segment(instance_id), message)

    async def send_cut(self, cut: int, request_id: str = "r", **options: object) -> Segment:
        """Both segments and the coordinator's answer, as the scheduler and coordinator do."""
        alpha = segment(request_id, "alpha", cut, peer="b", **options)  # type: ignore[arg-type]
        beta = segment(request_id, "beta", cut, peer="a", **options)  # type: ignore[arg-type]
        await self.bus.publish(SUBJECTS.control("a"), handoff_start(alpha, "alpha"))
        await self.bus.publish(SUBJECTS.control("b"), handoff_start(alpha, "beta"))
        await self.send("a", alpha)
        await self.send("b", beta)
        return alpha

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self._heard:
            await self._heard.wait_for(condition)

    async def until_ended(self, count: int) -> None:
        await self.until(lambda: len(self.timings) >= count)

    def tokens(self, request_id: str = "r") -> dict[int, int]:
        """Token by position; a position that came twice is an error."""
        seen: dict[int, int] = {}
        for frame in self.frames:
            for delta in frame.deltas:
                if delta.request_id != request_id:
                    continue
                for index, token in enumerate(delta.token_ids, delta.position):
                    assert index not in seen, f"position {index} came twice"
                    seen[index] = token
        return seen

    def phases(self, side: Side) -> list[str]:
        return [event.phase for event in self.events if event.side == side]

    def free_blocks(self) -> list[int]:
        return [
            actor.engine.steps.pool.free
            for actor in self.instances.values()
            if isinstance(actor.engine, SimulatedEngine)
        ]

    async def _on_gateway(self, delivery: Delivery) -> None:
        message = GATEWAY.validate_json(delivery.data)
        async with self._heard:
            match message:
                case TokenFrame():
                    self.frames.append(message)
                case SegmentFailed():
                    self.failures.append(message)
                case SegmentTiming():
                    self.timings.append(message)
            self._heard.notify_all()

    async def _on_coordinator(self, delivery: Delivery) -> None:
        message = COORDINATOR.validate_json(delivery.data)
        assert isinstance(message, HandoffEvent)
        async with self._heard:
            self.events.append(message)
            self._heard.notify_all()


@contextlib.asynccontextmanager
async def on_stage(
    settings: SimulationSettings = SMALL,
    engine: Callable[[], Engine] | None = None,
    ids: tuple[str, ...] = ("a", "b"),
    options: Mapping[str, object] | None = None,
) -> AsyncIterator[Stage]:
    """Run instances until the block ends."""
    stage = Stage(MemoryBus())
    await stage.listen()
    async with asyncio.TaskGroup() as tasks:
        for instance_id in ids:
            made = engine() if engine is not None else SimulatedEngine(settings)
            actor_settings = InstanceSettings.model_validate(
                {"id": instance_id, "engine": "simulated", "drain_s": 0.1, **(options or {})}
            )
            actor = InstanceActor(stage.bus, actor_settings, made)
            stage.instances[instance_id] = actor
            tasks.create_task(actor.run())
            await actor.ready.wait()
        try:
            yield stage
        finally:
            for actor in stage.instances.values():
                actor.stop()
    await stage.bus.close()
