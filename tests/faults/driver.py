"""Plays gateway, scheduler and coordinator towards real instances, so that a test decides what
arrives, when, and what never does."""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vllm.sampling_params import SamplingParams

from shared.bus import Bus, Delivery
from shared.schemas.handoff import COORDINATOR, HandoffEvent, HandoffStart, Side, Transport
from shared.schemas.message import pack_tokens
from shared.schemas.registry import InstanceRecord
from shared.schemas.request import GenerationRequest, Slo
from shared.schemas.segment import HandoffRef, Role, Segment, SegmentCancel
from shared.schemas.tokens import GATEWAY, SegmentFailed, TokenFrame
from shared.subjects import Subjects
from shared.vllm_params import sampling_to_json

OWN_ID = "driver"
WAIT_S = 20.0
_numbers = itertools.count(1)


@dataclass
class Run:
    """What came back of one request. ``tokens``: position -> token, each at most once."""

    request: GenerationRequest
    tokens: dict[int, int] = field(default_factory=dict)
    finish_reason: str | None = None
    failures: list[SegmentFailed] = field(default_factory=list)
    events: list[HandoffEvent] = field(default_factory=list)

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def output(self) -> list[int]:
        return [self.tokens[position] for position in sorted(self.tokens)]

    def phases(self, side: Side) -> list[str]:
        return [event.phase for event in self.events if event.side == side]

    def has(self, side: Side, phase: str) -> bool:
        return phase in self.phases(side)


class Driver:
    """Invariant checked on the way: no position comes twice with different tokens."""

    def __init__(self, bus: Bus, subjects: Subjects, records: dict[str, InstanceRecord]) -> None:
        self.bus = bus
        self.subjects = subjects
        self.records = records
        self._runs: dict[str, Run] = {}
        self._changed: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def start(self) -> None:
        await self.bus.subscribe(self.subjects.gateway(OWN_ID), self._on_gateway_message)
        await self.bus.subscribe(self.subjects.handoff(OWN_ID), self._on_coordinator_message)

    def new_run(self, prompt: Sequence[int], max_tokens: int) -> Run:
        """A greedy request that runs to its bound."""
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        now_s = time.time()
        request = GenerationRequest(
            request_id=f"driven-{next(_numbers)}",
            prompt_token_ids=pack_tokens(prompt),
            sampling_params=sampling_to_json(sampling),
            max_tokens=max_tokens,
            arrival_time_s=now_s,
            deadline_s=now_s + 60,
            slo=Slo(ttft_s=10, tbt_s=1),
            cache_salt=f"driven-{now_s}",
        )
        run = self._runs[request.request_id] = Run(request)
        return run

    async def send_whole(self, run: Run, instance_id: str) -> None:
        segment = Segment(role="whole", epoch=1, gateway_id=OWN_ID, request=run.request)
        await self.bus.publish(self.subjects.segment(instance_id), segment)

    async def send_side(
        self, run: Run, role: Role, instance_id: str, peer_id: str, cut: int, deadline_s: float
    ) -> None:
        """One side's segment; the other may never come."""
        handoff = HandoffRef(
            handoff_id=f"{run.request_id}.1",
            cut=cut,
            peer_id=peer_id,
            coordinator_id=OWN_ID,
            deadline_s=deadline_s,
        )
        segment = Segment(
            role=role, epoch=1, gateway_id=OWN_ID, request=run.request, handoff=handoff
        )
        await self.bus.publish(self.subjects.segment(instance_id), segment)

    async def send_start(
        self,
        run: Run,
        side: Side,
        instance_id: str,
        peer_id: str,
        deadline_s: float,
        transport: Transport = "shm",
        lease_s: float = 2.0,
    ) -> None:
        start = HandoffStart(
            handoff_id=f"{run.request_id}.1",
            request_id=run.request_id,
            epoch=1,
            side=side,
            peer_id=peer_id,
            peer_addresses=self.records[peer_id].kv_addresses,
            transport=transport,
            deadline_s=deadline_s,
            lease_s=lease_s,
        )
        await self.bus.publish(self.subjects.control(instance_id), start)

    async def cancel(self, run: Run) -> None:
        message = SegmentCancel(request_id=run.request_id, epoch=1)
        for instance_id in self.records:
            await self.bus.publish(self.subjects.control(instance_id), message)

    async def until(self, run: Run, condition: Callable[[Run], bool]) -> None:
        """Return as soon as ``condition`` holds; woken by every message of the run."""
        changed = self._changed[run.request_id]
        async with asyncio.timeout(WAIT_S):
            while not condition(run):
                changed.clear()
                await changed.wait()

    async def _on_gateway_message(self, delivery: Delivery) -> None:
        message = GATEWAY.validate_json(delivery.data)
        if isinstance(message, TokenFrame):
            for delta in message.deltas:
                run = self._runs[delta.request_id]
                for offset, token in enumerate(delta.token_ids):
                    position = delta.position + offset
                    assert run.tokens.setdefault(position, token) == token
                run.finish_reason = delta.finish_reason or run.finish_reason
                self._changed[delta.request_id].set()
        elif isinstance(message, SegmentFailed):
            self._runs[message.request_id].failures.append(message)
            self._changed[message.request_id].set()

    async def _on_coordinator_message(self, delivery: Delivery) -> None:
        event = COORDINATOR.validate_json(delivery.data)
        if isinstance(event, HandoffEvent):
            request_id = event.handoff_id.rpartition(".")[0]
            self._runs[request_id].events.append(event)
            self._changed[request_id].set()
