"""A journal inside one process, for tests and simulation."""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from shared.bus import Bus, Delivery, JournalConfig, Subscription


class MemoryJournal:
    """Bounded by bytes and, when it is read, by age."""

    def __init__(
        self, bus: Bus, config: JournalConfig, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._bus = bus
        self._config = config
        self._now_s = now_s
        self._kept: deque[tuple[float, Delivery]] = deque()
        self._num_bytes = 0
        self._subscriptions: list[Subscription] = []

    async def ensure(self) -> None:
        if not self._subscriptions:
            for subject in self._config.subjects:
                self._subscriptions.append(await self._bus.subscribe(subject, self._keep))

    async def newest_first(self) -> AsyncIterator[Delivery]:
        oldest_s = self._now_s() - self._config.max_age_s
        for at_s, delivery in list(reversed(self._kept)):
            if at_s >= oldest_s:
                yield delivery

    async def _keep(self, delivery: Delivery) -> None:
        self._kept.append((self._now_s(), delivery))
        self._num_bytes += len(delivery.data)
        while self._num_bytes > self._config.max_bytes:
            _, gone = self._kept.popleft()
            self._num_bytes -= len(gone.data)
