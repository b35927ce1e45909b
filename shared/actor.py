"""What every service's actor has in common: one TaskGroup, typed listeners, an edge for errors."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from shared import bus_metrics
from shared.bus import Bus, Delivery, Subscription
from shared.bus_metrics import LagMeter
from shared.clock import Clock, SystemClock
from shared.telemetry import Attributes, Gauge

M = TypeVar("M")

CANCEL_AGAIN_S = 0.5


class Actor:
    """Owns every task of one service.

    Subclasses override ``start`` (subscribe, spawn) and ``drain`` (finish what is under way). All
    tasks live in one TaskGroup: when one fails unexpectedly, the actor stops as a whole.
    """

    def __init__(self, name: str, bus: Bus, clock: Clock | None = None) -> None:
        self.name = name
        self.bus = bus
        self.clock: Clock = clock or SystemClock()
        self.log = logging.getLogger(f"dynaserve.{name}")
        self.ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Subscription] = []
        self._shown: list[Callable[[], None]] = []
        self._counted = {"actor": name}
        bus_metrics.dropped.add(0, self._counted)
        bus_metrics.failed.add(0, self._counted)

    async def start(self) -> None:
        """Subscribe and spawn; the actor is ready when this returns."""

    async def drain(self) -> None:
        """Called once before the tasks are cancelled; bound every wait in it."""

    def stop(self) -> None:
        """Ask ``run`` to drain and return."""
        self._stop.set()

    async def run(self) -> None:
        """Start, serve until ``stop``, drain, cancel what is left."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await self.start()
                self.ready.set()
                await self._stop.wait()
                await self.drain()
            finally:
                for subscription in self._subscriptions:
                    await subscription.close()
                await self._cancel_background()
                for forget in self._shown:
                    forget()

    async def _cancel_background(self) -> None:
        """Cancel until all have ended: a library may swallow a cancel that meets a result."""
        while self._background:
            for task in self._background:
                task.cancel()
            await asyncio.wait(self._background, timeout=CANCEL_AGAIN_S)

    async def run_until_signal(self) -> None:
        """``run``, stopping on SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        await self.run()

    @property
    def num_tasks(self) -> int:
        """Tasks alive in this actor."""
        return len(self._background)

    def show(
        self,
        gauge: Gauge,
        read: Callable[[], float | None],
        attributes: Attributes | None = None,
    ) -> None:
        """Have ``gauge`` read a value of this actor for as long as it runs."""
        self._shown.append(gauge.watch(read, attributes))

    def show_queue(self, name: str, depth: Callable[[], int], bound: int) -> None:
        """Show how full a bounded queue is, and its bound."""
        self.show(bus_metrics.queue_depth, depth, {"queue": name})
        self.show(bus_metrics.queue_bound, lambda: bound, {"queue": name})

    def measure_lag(self, stream: str) -> LagMeter:
        """A meter of how late the messages of ``stream`` are."""
        meter = LagMeter(stream)
        self._shown.append(meter.forget)
        return meter

    def spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Run ``work`` in the actor's TaskGroup; its failure ends the actor."""
        if self._tasks is None:
            raise RuntimeError("spawn is for a running actor")
        task = self._tasks.create_task(work, name=f"{self.name}:{name}")
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def spawn_guarded(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Run ``work``; its failure is counted and logged, and the actor goes on."""
        return self.spawn(self._guarded(work, name), name)

    async def listen(
        self,
        subject: str,
        adapter: TypeAdapter[M],
        handler: Callable[[M, Delivery], Awaitable[None]],
        queue: str = "",
    ) -> None:
        """Call ``handler`` with each valid message on ``subject``; others are counted, dropped."""

        async def on_delivery(delivery: Delivery) -> None:
            try:
                message = adapter.validate_json(delivery.data)
            except ValidationError as error:
                bus_metrics.dropped.add(1, self._counted)
                self.log.warning("unreadable message on %s: %s", delivery.subject, error)
                return
            await self._guarded(handler(message, delivery), delivery.subject)

        self._subscriptions.append(await self.bus.subscribe(subject, on_delivery, queue))

    async def _guarded(self, work: Awaitable[None], name: str) -> None:
        try:
            await work
        except Exception:  # the actor's edge: count, log, serve the next message
            bus_metrics.failed.add(1, self._counted)
            self.log.exception("handler of %s failed", name)
