"""What the client itself costs, and whether it was the bottleneck."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from array import array
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, fields

from dynaserve.bench.figures import mean, milliseconds, percentile

PROBE_S = 0.01
MOST_CPU_SHARE = 0.85
MOST_LAG_MS = 5.0
MOST_LATE_MS = 10.0
TBT_SHARE = 0.1
"""Lag and lateness up to a tenth of the tightest TBT objective say little about its attainment."""


@dataclass(frozen=True, slots=True)
class ClientOverhead:
    """Of the busiest client process. Times in ms; ``cpu_share`` is of one core."""

    cpu_share: float
    cpu_us_per_chunk: float
    handling_us_per_chunk: float
    chunks: int
    loop_lag_p50_ms: float
    loop_lag_p99_ms: float
    loop_lag_max_ms: float
    late_mean_ms: float
    late_p99_ms: float
    late_max_ms: float


def busiest(clients: Sequence[ClientOverhead]) -> ClientOverhead:
    """Of several processes: the worst of each figure, chunks in all."""
    worst = {
        each.name: max(getattr(client, each.name) for client in clients)
        for each in fields(ClientOverhead)
    }
    return ClientOverhead(**{**worst, "chunks": sum(client.chunks for client in clients)})


def bottleneck(client: ClientOverhead, tightest_tbt_s: float, slots_bound: bool) -> list[str]:
    """Reasons not to trust the run, empty when the client kept up.

    ``slots_bound``: requests waited for a free slot on purpose, so lateness is not the client's.
    """
    allowed_ms = min(TBT_SHARE * tightest_tbt_s * 1e3, 1e3)
    reasons = []
    if client.cpu_share > MOST_CPU_SHARE:
        reasons.append(f"the client used {client.cpu_share:.0%} of its core")
    if client.loop_lag_p99_ms > max(MOST_LAG_MS, allowed_ms):
        reasons.append(f"its event loop was {client.loop_lag_p99_ms:.1f} ms late (P99)")
    if client.late_p99_ms > max(MOST_LATE_MS, allowed_ms) and not slots_bound:
        reasons.append(f"requests were sent {client.late_p99_ms:.1f} ms late (P99)")
    return reasons


@dataclass(slots=True)
class OverheadMeter:
    """Measures while its ``running`` block lasts."""

    lags_s: array[float] = field(default_factory=lambda: array("d"))
    handling_s: float = 0.0
    chunks: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    _due_s: float = math.inf

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Probe the event loop and count this process's CPU time."""
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        probe = asyncio.create_task(self._probe(), name="loop-lag")
        try:
            yield
        finally:
            self._note_lag()  # a loop blocked to the very end wakes its probe no more
            probe.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probe
            self.cpu_s += time.process_time() - cpu_s
            self.wall_s += time.perf_counter() - wall_s

    async def _probe(self) -> None:
        """How much later than asked the loop wakes a task."""
        loop = asyncio.get_running_loop()
        while True:
            self._due_s = loop.time() + PROBE_S
            await asyncio.sleep(PROBE_S)
            self.lags_s.append(max(0.0, loop.time() - self._due_s))

    def _note_lag(self) -> None:
        lag_s = asyncio.get_running_loop().time() - self._due_s
        if lag_s > 0.0:
            self.lags_s.append(lag_s)

    def summary(self, late_s: Iterable[float]) -> ClientOverhead:
        lags = milliseconds(self.lags_s)
        late = milliseconds(late_s)
        per_chunk = 1e6 / max(self.chunks, 1)
        return ClientOverhead(
            cpu_share=self.cpu_s / max(self.wall_s, 1e-9),
            cpu_us_per_chunk=self.cpu_s * per_chunk,
            handling_us_per_chunk=self.handling_s * per_chunk,
            chunks=self.chunks,
            loop_lag_p50_ms=percentile(lags, 50) if len(lags) else 0.0,
            loop_lag_p99_ms=percentile(lags, 99) if len(lags) else 0.0,
            loop_lag_max_ms=float(lags.max()) if len(lags) else 0.0,
            late_mean_ms=mean(late) if len(late) else 0.0,
            late_p99_ms=percentile(late, 99) if len(late) else 0.0,
            late_max_ms=float(late.max()) if len(late) else 0.0,
        )
