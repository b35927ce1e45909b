"""An actor stops with all its tasks, also with one that swallows its first cancel."""

import asyncio

from shared.actor import Actor
from shared.bus_memory import MemoryBus


class Stubborn(Actor):
    """Has a task that goes on after the first cancel, as ``wait_for`` of Python 3.11 may."""

    async def start(self) -> None:
        self.cancels = 0
        self.running = asyncio.Event()
        self.spawn(self._go_on(), "stubborn")

    async def _go_on(self) -> None:
        while self.cancels < 2:
            self.running.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancels += 1


async def test_a_task_that_swallows_a_cancel_is_cancelled_again() -> None:
    actor = Stubborn("test", MemoryBus())
    run = asyncio.create_task(actor.run())
    await actor.ready.wait()
    await actor.running.wait()
    actor.stop()
    await asyncio.wait_for(run, 5)
    assert actor.cancels == 2 and actor.num_tasks == 0
