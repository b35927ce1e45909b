"""Drives one load from several processes, for servers faster than one client.

Each process takes every n-th request. They share the host's monotonic clock, so the schedule stays
one schedule; every answer comes back over a pipe as it is complete, and one listener judges all.
"""

import asyncio
import contextlib
import multiprocessing
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from dynaserve.bench.drive import Drive, Driven, Listener, Order
from dynaserve.bench.observation import Observation
from dynaserve.bench.overhead import ClientOverhead, busiest
from shared.errors import DynaServeError

FLEET_LEAD_S = 0.2
STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker -> parent: connected and warm. The answer is the time to begin."""


@dataclass(frozen=True, slots=True)
class Sent:
    seen: Observation


@dataclass(frozen=True, slots=True)
class Done:
    seen: Observation


@dataclass(frozen=True, slots=True)
class Ended:
    """Worker -> parent, last: everything it saw and what it cost, or why it failed."""

    driven: Driven | None
    error: str = ""


FromWorker = Ready | Sent | Done | Ended


def shards(order: Order, number: int) -> list[Order]:
    """Every n-th request each; slots are shared out, at least one each."""
    slots = order.max_concurrency
    return [
        replace(
            order,
            requests=order.requests[index::number],
            max_concurrency=None if slots is None else slots // number + (index < slots % number),
        )
        for index in range(number)
    ]


class Fleet:
    """The workers of one run: one process and one pipe each."""

    def __init__(self, order: Order, processes: int, listener: Listener) -> None:
        if order.max_concurrency is not None and order.max_concurrency < processes:
            raise DynaServeError("fewer slots than client processes")
        self._orders = shards(order, processes)
        self._listener = listener
        self._workers: list[tuple[SpawnProcess, Connection]] = []
        self._stopped = False

    async def run(self) -> Driven:
        """Start all, begin together, wait for all; no process is left behind."""
        try:
            for order in self._orders:
                self._workers.append(_start(order))
            ended = await self._listen()
        finally:
            for process, pipe in self._workers:
                pipe.close()
                process.join(STOP_S)
                process.kill()
        overhead: list[ClientOverhead] = []
        seen: list[Observation] = []
        for each in ended:
            if each.driven is None:
                raise DynaServeError(f"a client process failed: {each.error}")
            overhead.append(each.driven.overhead)
            seen += each.driven.observations
        seen.sort(key=lambda each: each.due_s)
        return Driven(tuple(seen), busiest(overhead), self._stopped)

    async def _listen(self) -> list[Ended]:
        async with asyncio.TaskGroup() as group:
            ready = asyncio.Barrier(len(self._workers))
            listening = [group.create_task(self._follow(pipe, ready)) for _, pipe in self._workers]
        return [task.result() for task in listening]

    async def _follow(self, pipe: Connection, ready: asyncio.Barrier) -> Ended:
        """One worker from ready to ended."""
        while True:
            match await _receive(pipe):
                case Ready():
                    await ready.wait()
                    _tell(pipe, asyncio.get_running_loop().time() + FLEET_LEAD_S)
                case Sent(seen):
                    self._listener.sent(seen)
                case Done(seen):
                    if self._listener.done(seen) and not self._stopped:
                        self._stop()
                case Ended() as ended:
                    if ended.driven is None:
                        await ready.abort()
                    return ended

    def _stop(self) -> None:
        self._stopped = True
        for _, pipe in self._workers:
            _tell(pipe, None)


def _start(order: Order) -> tuple[SpawnProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(order, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _tell(pipe: Connection, message: float | None) -> None:
    """To a worker, unless it has ended: what it said last is then still to be read."""
    with contextlib.suppress(ConnectionError):
        pipe.send(message)


async def _receive(pipe: Connection) -> FromWorker:
    """The next message; a worker that died ends with an error."""
    loop = asyncio.get_running_loop()
    if not pipe.poll():
        readable = asyncio.Event()
        loop.add_reader(pipe.fileno(), readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(pipe.fileno())
    try:
        message: FromWorker = pipe.recv()
    except EOFError:
        return Ended(None, "it ended without a word")
    return message


class _Teller:
    """The worker's listener: everything goes to the parent, who decides."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def sent(self, seen: Observation) -> None:
        self._pipe.send(Sent(seen))

    def done(self, seen: Observation) -> bool:
        self._pipe.send(Done(seen))
        return False


def work(order: Order, pipe: Connection) -> None:
    """Main function of a worker process."""
    try:
        pipe.send(Ended(asyncio.run(_work(order, pipe))))
    except DynaServeError as error:
        pipe.send(Ended(None, str(error)))
    except (BrokenPipeError, KeyboardInterrupt):
        return  # the parent is gone and nobody waits for the rest


async def _work(order: Order, pipe: Connection) -> Driven:
    drive = Drive(order, _Teller(pipe))
    loop = asyncio.get_running_loop()

    async def begin() -> float:
        pipe.send(Ready())
        told: float = await loop.run_in_executor(None, pipe.recv)
        loop.add_reader(pipe.fileno(), stop)
        return told

    def stop() -> None:
        """The parent said stop, or is gone."""
        loop.remove_reader(pipe.fileno())
        drive.stop()

    return await drive.run(begin)
