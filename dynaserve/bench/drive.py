"""Drives a load from this process: session, warm-up, replay, and what all that cost."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from dynaserve.bench.client import ClientSettings, CompletionClient, open_session
from dynaserve.bench.observation import Observation
from dynaserve.bench.overhead import ClientOverhead, OverheadMeter
from dynaserve.bench.replay import LEAD_S, Replay
from dynaserve.sim.traces import SimRequest
from shared.errors import DynaServeError

WARMUP_LENGTHS = (64, 8)
"""Tokens in and out of a request sent before the clock starts."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to send: requests in order of arrival; those due before ``measure_from_s`` warm up."""

    client: ClientSettings
    requests: tuple[SimRequest, ...]
    measure_from_s: float = 0.0
    max_concurrency: int | None = None
    num_warmups: int = 0


@dataclass(frozen=True, slots=True)
class Driven:
    """What came of an order. ``stopped``: the listener had seen enough before the end."""

    observations: tuple[Observation, ...]
    overhead: ClientOverhead
    stopped: bool


class Listener(Protocol):
    """Hears of every request; ``done`` returns True to end the run."""

    def sent(self, seen: Observation) -> None: ...
    def done(self, seen: Observation) -> bool: ...


class Drive:
    """One order, carried out once."""

    def __init__(self, order: Order, listener: Listener) -> None:
        self._order = order
        self._listener = listener
        self._meter = OverheadMeter()
        self._replay: Replay | None = None

    async def run(self, begin: Callable[[], Awaitable[float]] | None = None) -> Driven:
        """Warm up, then replay from the time (on the loop's clock) that ``begin`` gives."""
        order = self._order
        async with open_session(order.client) as session:
            client = CompletionClient(session, order.client, self._meter)
            await _warm_up(client, order.num_warmups)
            self._replay = Replay(
                client.send,
                max_concurrency=order.max_concurrency,
                on_sent=self._listener.sent,
                on_done=self._done,
            )
            start_s = await (begin or _soon)()
            async with self._meter.running(), _quiet_collector():
                seen = await self._replay.run(order.requests, order.measure_from_s, start_s)
        overhead = self._meter.summary(each.late_s for each in seen)
        return Driven(tuple(seen), overhead, self._replay.stopped)

    def stop(self) -> None:
        """Hang up on everything; ``run`` returns with what there is."""
        if self._replay is not None:
            self._replay.stop()

    def _done(self, seen: Observation) -> None:
        if self._listener.done(seen):
            self.stop()


async def _soon() -> float:
    return asyncio.get_running_loop().time() + LEAD_S


async def _warm_up(client: CompletionClient, number: int) -> None:
    """Connections, code paths and compiled kernels that only a first request meets."""
    seen = [
        Observation(SimRequest(f"warmup-{n}", 0.0, *WARMUP_LENGTHS, "warmup"), 0.0)
        for n in range(number)
    ]
    await asyncio.gather(*(client.send(each) for each in seen))
    failed = next((each for each in seen if each.outcome == "failed"), None)
    if failed is not None:
        raise DynaServeError(f"a warm-up request failed: {failed.detail}")


@contextlib.asynccontextmanager
async def _quiet_collector() -> AsyncIterator[None]:
    """No full garbage collections of what was there before: they stop the client for long."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
