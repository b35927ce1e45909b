"""Load reports of an instance: as fresh as the engine, at most 20 a second, never silent."""

import asyncio
from collections import deque
from collections.abc import Callable

from services.gpu_instance.engine.seam import EngineLoad
from shared.clock import Clock
from shared.schemas.telemetry import InstanceLoad, LinkLoad

KEEPALIVE_S = 0.25
"""An instance with nothing new repeats its last report this often, so that silence means loss."""

MAX_ADMITTED = 8192
"""Segments the engine has not counted yet; the oldest are passed over beyond it."""

FIELDS = tuple(name for name in EngineLoad.__dataclass_fields__ if name != "num_added")


class LoadReporter:
    """Paces reports: the newest load goes out once the interval since the last one is over."""

    def __init__(
        self,
        instance_id: str,
        clock: Clock,
        interval_s: float,
        send: Callable[[InstanceLoad], None],
        links: Callable[[], list[LinkLoad]] = list,
    ) -> None:
        self._instance_id = instance_id
        self._clock = clock
        self._interval_s = interval_s
        self._every_s = max(KEEPALIVE_S, interval_s)
        self._send = send
        self._links = links
        self._load: EngineLoad | None = None
        self._admitted: deque[str] = deque(maxlen=MAX_ADMITTED)
        self._num_admitted = 0
        self._sequence = 0
        self._due = asyncio.Event()

    def admitted(self, request_id: str) -> None:
        """A segment goes to the engine: the first report that counts it will name it."""
        self._num_admitted += 1
        self._admitted.append(request_id)

    def update(self, load: EngineLoad) -> None:
        self._load = load
        self._due.set()

    async def run(self) -> None:
        """Report until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_alive())
            while True:
                await self._due.wait()
                self._due.clear()
                if self._load is not None:
                    self._send(self._report(self._load))
                    await self._clock.sleep(self._interval_s)

    async def _keep_alive(self) -> None:
        while True:
            await self._clock.sleep(self._every_s)
            self._due.set()

    def _report(self, load: EngineLoad) -> InstanceLoad:
        self._sequence += 1
        known = {name: getattr(load, name) for name in FIELDS}
        known["links"] = load.links or self._links()
        return InstanceLoad(
            instance_id=self._instance_id,
            sequence=self._sequence,
            at_s=self._clock.unix_s(),
            report_every_s=self._every_s,
            admitted_request_ids=self._take_admitted(load),
            **known,
        )

    def _take_admitted(self, load: EngineLoad) -> list[str]:
        """Those that are in ``load``: what is still on its way to the engine is named later."""
        unknown = 0 if load.num_added is None else max(0, self._num_admitted - load.num_added)
        return [self._admitted.popleft() for _ in range(len(self._admitted) - unknown)]
