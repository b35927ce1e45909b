"""Handoffs on a live pool: what moves, how long it takes, how much of it anybody waits for.

Speaks to instances as a gateway and a scheduler do, so that alpha and beta are known. Three parts:
``sizes`` (single handoffs of several lengths), ``streamed`` (cuts behind the prompt: the gap
between alpha's last and beta's first token), ``bystanders`` (decodes on beta's instance, with and
without handoffs arriving all the time).
"""

import asyncio
import random
import statistics
import time
import uuid
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from shared.bus import Bus, Delivery
from shared.errors import RequestFailed
from shared.pairing import choose_transport
from shared.registry import PoolRegistry
from shared.schemas.handoff import COORDINATOR, HandoffEvent
from shared.schemas.message import pack_tokens
from shared.schemas.registry import InstanceRecord
from shared.schemas.request import GenerationRequest, Slo
from shared.schemas.segment import HandoffRef, Segment
from shared.schemas.tokens import GATEWAY, GatewayMessage, SegmentFailed, TokenFrame
from shared.subjects import Subjects

Figures = dict[str, float | int]
ADAPTER: TypeAdapter[GatewayMessage] = GATEWAY
TIMEOUT_S = 60.0
LOOSE = Slo(ttft_s=60.0, tbt_s=60.0, name="suite")


@dataclass
class Run:
    """One request: when each of its tokens came, and how its handoff went."""

    sent_s: float
    token_s: list[float] = field(default_factory=list)
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

    async def start(self) -> None:
        await self._bus.subscribe(self._subjects.gateway(self._id), self._on_tokens)
        await self._bus.subscribe(self._subjects.handoff(self._id), self._on_handoff)

    async def run(
        self, alpha: str, beta: str | None, num_prompt: int, max_tokens: int, cut: int | None
    ) -> Run:
        """Run one request to its end; raises RequestFailed or TimeoutError."""
        request_id = f"{self._id}-{len(self._runs)}"
        now_s = time.time()
        request = GenerationRequest(
            request_id=request_id,
            prompt_token_ids=pack_tokens(self._random.choices(range(100, 1900), k=num_prompt)),
            sampling_params={"max_tokens": max_tokens, "ignore_eos": True, "temperature": 0.0},
            max_tokens=max_tokens,
            arrival_time_s=now_s,
            deadline_s=now_s + TIMEOUT_S,
            slo=LOOSE,
        )
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
                    handoff=self._ref(f"{request_id}.1", cut, me, peer, now_s),
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
                if delta.finish_reason is not None and not run.done.done():
                    run.done.set_result(None)

    async def _on_handoff(self, delivery: Delivery) -> None:
        event = COORDINATOR.validate_json(delivery.data)
        if isinstance(event, HandoffEvent):
            run = self._runs.get(event.handoff_id.rpartition(".")[0])
            if run is not None:
                run.events[event.side, event.phase] = event


async def measure(
    client: PairClient, records: dict[str, InstanceRecord], lengths: list[int], repeats: int
) -> dict[str, object]:
    """All three parts on the first two instances."""
    alpha, beta = sorted(records)[:2]
    await client.run(alpha, beta, lengths[0], 4, lengths[0] - 1)  # the link is built here
    return {
        "transport": choose_transport(records[alpha], records[beta]),
        "sizes": {str(n): await sizes(client, alpha, beta, n, repeats) for n in lengths},
        "streamed": {str(n): await streamed(client, alpha, beta, n, repeats) for n in lengths[:2]},
        "bystanders": await bystanders(client, alpha, beta, lengths[min(1, len(lengths) - 1)]),
    }


async def sizes(client: PairClient, alpha: str, beta: str, length: int, repeats: int) -> Figures:
    """Cut at the prompt's end but one: the handoff is part of TTFT; beside it the uncut TTFT."""
    whole = [await client.run(alpha, None, length, 4, None) for _ in range(repeats)]
    cut = [await client.run(alpha, beta, length, 4, length - 1) for _ in range(repeats)]
    await asyncio.sleep(0.3)  # the last events of the last handoff
    done = [run.events["beta", "complete"] for run in cut if ("beta", "complete") in run.events]
    exposed = sorted(event.exposed_s for event in done)
    whole_s, cut_s = (sorted(r.ttft_s for r in runs) for runs in (whole, cut))
    return {
        "repeats": len(done),
        "bytes": max((event.num_bytes for event in done), default=0),
        "transfer_p50_ms": 1e3 * statistics.median([e.transfer_s for e in done] or [0.0]),
        "exposed_p50_ms": 1e3 * statistics.median(exposed or [0.0]),
        "exposed_max_ms": 1e3 * max(exposed, default=0.0),
        "ttft_whole_p50_ms": 1e3 * statistics.median(whole_s),
        "ttft_cut_p50_ms": 1e3 * statistics.median(cut_s),
        "exposed_share_of_ttft": statistics.median(exposed or [0.0]) / statistics.median(cut_s),
    }


async def streamed(client: PairClient, alpha: str, beta: str, length: int, repeats: int) -> Figures:
    """Cut 16 tokens behind the prompt: the one gap at the cut beside all the others."""
    runs = [await client.run(alpha, beta, length, 40, length + 16) for _ in range(repeats)]
    at_cut = sorted(run.gaps_s[16] for run in runs)
    others = [gap for run in runs for i, gap in enumerate(run.gaps_s) if i != 16]
    return {
        "gap_at_cut_p50_ms": 1e3 * statistics.median(at_cut),
        "gap_at_cut_max_ms": 1e3 * at_cut[-1],
        "other_gaps_p50_ms": 1e3 * statistics.median(others),
    }


async def bystanders(client: PairClient, alpha: str, beta: str, length: int) -> Figures:
    """32 decodes on beta's instance: gaps while nothing else runs, and while handoffs arrive."""

    async def decodes() -> list[float]:
        runs = await asyncio.gather(*(client.run(beta, None, 64, 200, None) for _ in range(32)))
        return sorted(gap for run in runs for gap in run.gaps_s[8:])

    calm = await decodes()
    stop = asyncio.Event()
    count = 0

    async def keep_handing_over() -> None:
        nonlocal count
        while not stop.is_set():
            await client.run(alpha, beta, length, 2, length - 1)
            count += 1

    senders = [asyncio.create_task(keep_handing_over()) for _ in range(2)]
    try:
        busy = await decodes()
    finally:
        stop.set()
        await asyncio.gather(*senders)
    return {
        "handoffs": count,
        "calm_gap_p50_ms": 1e3 * calm[len(calm) // 2],
        "calm_gap_p99_ms": 1e3 * calm[int(0.99 * len(calm))],
        "busy_gap_p50_ms": 1e3 * busy[len(busy) // 2],
        "busy_gap_p99_ms": 1e3 * busy[int(0.99 * len(busy))],
        "p50_ratio": busy[len(busy) // 2] / calm[len(calm) // 2],
    }
