"""Requests on chosen instances of a pool, spoken to as a gateway and a scheduler would."""

import asyncio
import random
import time
import uuid
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from dynaserve.profile.drive import exact_request
from shared.bus import Bus, Delivery
from shared.errors import RequestFailed
from shared.pairing import choose_transport
from shared.registry import PoolRegistry
from shared.schemas.handoff import COORDINATOR, HandoffEvent
from shared.schemas.registry import InstanceRecord
from shared.schemas.request import Slo
from shared.schemas.segment import HandoffRef, Segment
from shared.schemas.tokens import GATEWAY, GatewayMessage, SegmentFailed, TokenFrame
from shared.subjects import Subjects

ADAPTER: TypeAdapter[GatewayMessage] = GATEWAY
TIMEOUT_S = 60.0
LOOSE = Slo(ttft_s=60.0, tbt_s=60.0, name="suite")
FIRST_TOKEN, LAST_TOKEN = 100, 1900


@dataclass
class Run:
    """One request: when each of its tokens came, and how its handoff went."""

    sent_s: float
    token_s: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    events: dict[tuple[str, str], HandoffEvent] = field(default_factory=dict)
    done: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def ttft_s(self) -> float:
        return self.token_s[0] - self.sent_s

    @property
    def gaps_s(self) -> list[float]:
        return [b - a for a, b in zip(self.token_s, self.token_s[1:], strict=False)]


class PairClient:
    """Requests on a given pair of instances, whole or cut at a given place."""

    def __init__(self, bus: Bus, subjects: Subjects, registry: PoolRegistry) -> None:
        self._bus = bus
        self._subjects = subjects
        self._registry = registry
        self._id = f"suite-{uuid.uuid4().hex[:8]}"
        self._runs: dict[str, Run] = {}
        self._random = random.Random(0)

    @property
    def records(self) -> dict[str, InstanceRecord]:
        """The pool's instances by id."""
        return self._registry.instances

    async def start(self) -> None:
        await self._bus.subscribe(self._subjects.gateway(self._id), self._on_tokens)
        await self._bus.subscribe(self._subjects.handoff(self._id), self._on_handoff)

    def prompt(self, num_tokens: int) -> list[int]:
        """Another each time: nothing of it is cached anywhere."""
        return self._random.choices(range(FIRST_TOKEN, LAST_TOKEN), k=num_tokens)

    async def run(
        self,
        alpha: str,
        beta: str | None,
        prompt: int | list[int],
        max_tokens: int,
        cut: int | None,
    ) -> Run:
        """Run one request (token ids, or how many) to its end.

        Raises RequestFailed or TimeoutError.
        """
        ids = self.prompt(prompt) if isinstance(prompt, int) else prompt
        request_id = f"{self._id}-{len(self._runs)}"
        request = exact_request(request_id, ids, max_tokens, LOOSE, TIMEOUT_S)
        run = self._runs[request_id] = Run(time.perf_counter())
        if cut is None or beta is None:
            segment = Segment(role="whole", epoch=1, gateway_id=self._id, request=request)
            await self._bus.publish(self._subjects.segment(alpha), segment)
        else:
            for role, me, peer in (("alpha", alpha, beta), ("beta", beta, alpha)):
                segment = Segment(
                    role="alpha" if role == "alpha" else "beta",
                    epoch=1,
                    gateway_id=self._id,
                    request=request,
                    handoff=self._ref(f"{request_id}.1", cut, me, peer, request.arrival_time_s),
                )
                await self._bus.publish(self._subjects.segment(me), segment)
        async with asyncio.timeout(TIMEOUT_S):
            await run.done
        return run

    def _ref(self, handoff_id: str, cut: int, me: str, peer: str, now_s: float) -> HandoffRef:
        records = self._registry.instances
        return HandoffRef(
            handoff_id=handoff_id,
            cut=cut,
            peer_id=peer,
            coordinator_id=self._id,
            deadline_s=now_s + TIMEOUT_S / 2,
            peer_addresses=records[peer].kv_addresses,
            transport=choose_transport(records[me], records[peer]),
        )

    async def _on_tokens(self, delivery: Delivery) -> None:
        now_s = time.perf_counter()
        message = ADAPTER.validate_json(delivery.data)
        if isinstance(message, SegmentFailed):
            run = self._runs[message.request_id]
            if not run.done.done():
                run.done.set_exception(RequestFailed(message.message))
        elif isinstance(message, TokenFrame):
            for delta in message.deltas:
                run = self._runs[delta.request_id]
                run.token_s += [now_s] * len(delta.token_ids)
                run.token_ids += delta.token_ids
                if delta.finish_reason is not None and not run.done.done():
                    run.done.set_result(None)

    async def _on_handoff(self, delivery: Delivery) -> None:
        event = COORDINATOR.validate_json(delivery.data)
        if isinstance(event, HandoffEvent):
            run = self._runs.get(event.handoff_id.rpartition(".")[0])
            if run is not None:
                run.events[event.side, event.phase] = event
