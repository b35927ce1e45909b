"""Load reports of an instance: as fresh as the engine, never more than 20 a second."""

import asyncio
import contextlib
from collections.abc import Callable

from services.gpu_instance.engine.seam import EngineLoad
from shared.clock import Clock
from shared.schemas.telemetry import InstanceLoad

KEEPALIVE_S = 1.0
"""An idle instance repeats its last report this often, so that silence means loss."""

MAX_ADMITTED = 1024


class LoadReporter:
    """Paces reports: the newest load goes out once the interval since the last one is over."""

    def __init__(
        self,
        instance_id: str,
        clock: Clock,
        interval_s: float,
        send: Callable[[InstanceLoad], None],
    ) -> None:
        self._instance_id = instance_id
        self._clock = clock
        self._interval_s = interval_s
        self._send = send
        self._load: EngineLoad | None = None
        self._admitted: list[str] = []
        self._sequence = 0
        self._fresh = asyncio.Event()

    def admitted(self, request_id: str) -> None:
        """A segment is now the engine's: the next report counts it."""
        if len(self._admitted) < MAX_ADMITTED:
            self._admitted.append(request_id)

    def update(self, load: EngineLoad) -> None:
        self._load = load
        self._fresh.set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEEPALIVE_S):
                    await self._fresh.wait()
            self._fresh.clear()
            if self._load is not None:
                self._send(self._report(self._load))
                await self._clock.sleep(self._interval_s)

    def _report(self, load: EngineLoad) -> InstanceLoad:
        self._sequence += 1
        admitted, self._admitted = self._admitted, []
        return InstanceLoad(
            instance_id=self._instance_id,
            sequence=self._sequence,
            at_s=self._clock.unix_s(),
            admitted_request_ids=admitted,
            **{name: getattr(load, name) for name in EngineLoad.__dataclass_fields__},
        )
