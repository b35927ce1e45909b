"""Puts the load of a soak on a pool and balances the books afterwards."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
from pydantic import BaseModel, TypeAdapter

from benchmarks.soak.load import SoakRequest
from dynaserve.accounts import Accounts, accounts_of, leaks, until_balanced
from shared.bus import Bus, Delivery
from shared.errors import BusTimeout
from shared.schemas.handoff import HandoffRecord
from shared.schemas.segment import EngineAccounts
from shared.subjects import Subjects

HANDOFF_RECORD: TypeAdapter[HandoffRecord] = TypeAdapter(HandoffRecord)
BALANCE_TIMEOUT_S = 20.0
FIRST_GUESS_S = 0.5


class SoakResult(BaseModel):
    """``leaks`` is empty when every engine holds what it held before the load."""

    requests: int
    completed: int
    cancelled: int
    failed: dict[str, int]
    handoffs: dict[str, int]
    duration_s: float
    balanced_after_s: float
    leaks: list[str]
    before: dict[str, EngineAccounts]
    after: dict[str, EngineAccounts]

    @property
    def is_clean(self) -> bool:
        return not self.leaks and not self.failed


@dataclass
class Soak:
    """One load on one pool."""

    url: str
    model: str
    bus: Bus
    subjects: Subjects
    instance_ids: Sequence[str]
    ends: Counter[str] = field(default_factory=Counter)
    handoffs: Counter[str] = field(default_factory=Counter)
    usual_s: float = FIRST_GUESS_S
    """Running mean of how long a request takes that is not cancelled."""

    async def run(self, load: Sequence[SoakRequest], concurrency: int) -> SoakResult:
        subscription = await self.bus.subscribe(self.subjects.handoff_events, self._on_handoff)
        before = await accounts_of(self.bus, self.subjects, self.instance_ids)
        started_s = time.monotonic()
        limits = httpx.Limits(max_connections=concurrency)
        async with httpx.AsyncClient(base_url=self.url, timeout=120.0, limits=limits) as client:
            free = asyncio.Semaphore(concurrency)
            await asyncio.gather(*(self._one(client, free, request) for request in load))
        loaded_s = time.monotonic()
        after = await self._balance(before)
        balanced_s = time.monotonic()
        await subscription.close()
        return SoakResult(
            requests=len(load),
            completed=self.ends.pop("completed", 0),
            cancelled=self.ends.pop("cancelled", 0),
            failed=dict(self.ends),
            handoffs=dict(self.handoffs),
            duration_s=loaded_s - started_s,
            balanced_after_s=balanced_s - loaded_s,
            leaks=leaks(before, after),
            before=dict(before),
            after=dict(after),
        )

    async def _balance(self, before: Accounts) -> Accounts:
        try:
            return await until_balanced(self.bus, self.subjects, before, BALANCE_TIMEOUT_S)
        except BusTimeout:
            return await accounts_of(self.bus, self.subjects, self.instance_ids)

    async def _one(
        self, client: httpx.AsyncClient, free: asyncio.Semaphore, request: SoakRequest
    ) -> None:
        async with free:
            patience_s = request.leave_at * self.usual_s if request.leave_after == 0 else None
            try:
                async with asyncio.timeout(patience_s):
                    end = await self._stream(client, request)
            except TimeoutError:
                end = "cancelled"
            except httpx.TransportError as error:
                end = type(error).__name__
            self.ends[end] += 1

    async def _stream(self, client: httpx.AsyncClient, request: SoakRequest) -> str:
        """Read the whole answer; the connection is closed when this is cancelled."""
        started_s = time.monotonic()
        body = {
            "model": self.model,
            "prompt": list(request.prompt),
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "vllm_xargs": {"dynaserve_cut": request.cut},
        }
        finished = done = False
        num_seen = 0
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                return f"status {response.status_code}"
            async for line in response.aiter_lines():
                finished = finished or '"finish_reason":"length"' in line
                done = done or line == "data: [DONE]"
                num_seen += line.startswith("data: {")
                if request.leave_after and num_seen >= request.leave_after and not finished:
                    return "cancelled"
        if not (finished and done):
            return "ended without its last token"
        self.usual_s += 0.1 * (time.monotonic() - started_s - self.usual_s)
        return "completed"

    async def _on_handoff(self, delivery: Delivery) -> None:
        self.handoffs[HANDOFF_RECORD.validate_json(delivery.data).outcome] += 1
