"""The clock seam: wall and monotonic time, real or stepped by hand."""

import asyncio
import heapq
import time
from typing import Protocol


class Clock(Protocol):
    """Time as services see it."""

    def unix_s(self) -> float:
        """Wall time, comparable between hosts; for deadlines and records."""

    def monotonic_s(self) -> float:
        """Never goes back; for durations."""

    async def sleep(self, duration_s: float) -> None:
        """Return after ``duration_s``."""


class SystemClock:
    """The host's clocks."""

    def unix_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


class ManualClock:
    """A clock that moves only when ``advance`` is called: for simulation and tests."""

    def __init__(self, start_s: float = 1_700_000_000.0) -> None:
        self._now_s = start_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = 0

    def unix_s(self) -> float:
        return self._now_s

    def monotonic_s(self) -> float:
        return self._now_s

    async def sleep(self, duration_s: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (self._now_s + duration_s, self._order, woken))
        await woken

    def advance(self, duration_s: float) -> None:
        """Move time on and wake every sleeper that is due."""
        self._now_s += duration_s
        while self._sleepers and self._sleepers[0][0] <= self._now_s:
            woken = heapq.heappop(self._sleepers)[2]
            if not woken.done():
                woken.set_result(None)
