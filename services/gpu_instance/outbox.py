"""What the instance has to say, in order, published by one task."""

import asyncio
import logging
from collections import deque

from pydantic import BaseModel

from shared.bus import Bus
from shared.errors import BusError
from shared.telemetry import counter

log = logging.getLogger("dynaserve.gpu_instance.outbox")

_lost = counter("dynaserve_instance_messages_lost", "messages the bus did not take", "message")

MAX_PENDING = 65_536


class Outbox:
    """A bounded queue to the bus; ``put`` never waits, so it may be called from callbacks.

    Invariant: messages leave in the order they were put. When the bus is away longer than its own
    buffer lasts, messages are lost and counted: deadlines and epochs recover what they meant.
    """

    def __init__(self, bus: Bus, max_pending: int = MAX_PENDING) -> None:
        self._bus = bus
        _lost.add(0)
        self.max_pending = max_pending
        self._pending: deque[tuple[str, BaseModel | bytes]] = deque()
        self._waiting = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, subject: str, message: BaseModel | bytes) -> None:
        if len(self._pending) >= self.max_pending:
            _lost.add(1)
            return
        self._pending.append((subject, message))
        self._empty.clear()
        self._waiting.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            while self._pending:
                await self._publish(*self._pending.popleft())
            self._empty.set()

    async def flushed(self) -> None:
        """Return once everything put so far was handed to the bus; the caller bounds the wait."""
        await self._empty.wait()

    async def _publish(self, subject: str, message: BaseModel | bytes) -> None:
        try:
            await self._bus.publish(subject, message)
        except BusError as error:
            _lost.add(1)
            log.warning("lost a message to %s: %s", subject, error)
