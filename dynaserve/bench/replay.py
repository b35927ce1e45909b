"""Sends a schedule open loop: each request when it is due, whatever became of those before."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from dynaserve.bench.observation import Observation
from dynaserve.sim.traces import SimRequest

LEAD_S = 0.05
"""Between the call and time zero of the schedule, so that the first request is not late."""

Send = Callable[[Observation], Awaitable[None]]
Listener = Callable[[Observation], None]


def nothing(_: Observation) -> None:
    """For who does not want to hear."""


class Replay:
    """One run of a schedule. ``stop`` ends it early; what has no answer then is unfinished."""

    def __init__(
        self,
        send: Send,
        *,
        max_concurrency: int | None = None,
        on_sent: Listener = nothing,
        on_done: Listener = nothing,
    ) -> None:
        self._send = send
        self._slots = asyncio.Semaphore(max_concurrency) if max_concurrency else None
        self._on_sent = on_sent
        self._on_done = on_done
        self._tasks: set[asyncio.Task[None]] = set()
        self.stopped = False

    async def run(
        self,
        requests: Sequence[SimRequest],
        measure_from_s: float = 0.0,
        start_s: float | None = None,
    ) -> list[Observation]:
        """Send all, wait for all; the schedule begins at ``start_s`` on the loop's clock.

        Requests due before ``measure_from_s`` (in the schedule) are not measured.
        """
        if start_s is None:
            start_s = asyncio.get_running_loop().time() + LEAD_S
        seen = [
            Observation(
                request,
                start_s + request.arrival_s,
                measured=request.arrival_s >= measure_from_s,
            )
            for request in requests
        ]
        async with asyncio.TaskGroup() as group:
            self._keep(group.create_task(self._produce(group, seen), name="schedule"))
        return seen

    def stop(self) -> None:
        """Send nothing more and hang up on what is under way."""
        self.stopped = True
        for task in list(self._tasks):
            task.cancel()

    async def _produce(self, group: asyncio.TaskGroup, seen: Sequence[Observation]) -> None:
        now = asyncio.get_running_loop().time
        for each in seen:
            await asyncio.sleep(max(0.0, each.due_s - now()))
            self._keep(group.create_task(self._one(each)))

    async def _one(self, seen: Observation) -> None:
        if self._slots is None:
            await self._timed(seen)
        else:
            async with self._slots:
                await self._timed(seen)

    async def _timed(self, seen: Observation) -> None:
        self._on_sent(seen)
        await self._send(seen)
        self._on_done(seen)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def closed_loop(
    send: Send, requests: Sequence[SimRequest], concurrency: int
) -> list[Observation]:
    """``concurrency`` users, each sending its next request when its last one is answered."""
    loop = asyncio.get_running_loop()
    waiting = iter(requests)
    seen: list[Observation] = []

    async def user() -> None:
        for request in waiting:
            each = Observation(request, loop.time())
            seen.append(each)
            await send(each)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(user())
    return seen
