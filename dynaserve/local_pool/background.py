"""A local pool on a thread of its own, for callers with many event loops or none."""

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from dynaserve.local_pool.pool import LocalPool
from dynaserve.local_pool.settings import PoolSettings

START_S = 120.0
STOP_S = 60.0


class BackgroundPool:
    """Owns the thread and the pool on it; a context manager. Methods may be called anywhere.

    The thread starts the pool's processes and lives as long as they do: they die with it.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self.killed_at_s: dict[str, float] = {}
        """Parts that were killed, and the unix time of it: what started before is dead."""
        self._pool = LocalPool(settings)
        self._started: Future[None] = Future()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="pool")

    @property
    def url(self) -> str:
        return self._pool.url

    @property
    def nats_url(self) -> str:
        return self._pool.nats_url

    @property
    def pool(self) -> str:
        return self.settings.pool

    @property
    def instance_ids(self) -> list[str]:
        return sorted(name for name in self._pool.children if name.startswith("instance"))

    def pids(self) -> dict[str, int]:
        """Process id of each part that runs."""
        pids = {name: child.pid for name, child in self._pool.children.items()}
        return {name: pid for name, pid in pids.items() if pid is not None}

    def log_tail(self, name: str) -> str:
        """The last lines a part wrote."""
        return self._pool.children[name].log_tail()

    def kill(self, name: str) -> None:
        """SIGKILL to a part; the pool starts it again soon, see `restarts`."""
        self._pool.children[name].kill()
        self.killed_at_s[name] = time.time()

    def pause(self, name: str) -> None:
        """SIGSTOP: the part keeps its memory and its connections and does nothing."""
        os.killpg(self.pids()[name], signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT after ``pause``."""
        os.killpg(self.pids()[name], signal.SIGCONT)

    def start(self) -> None:
        """Return when requests can be placed; raises what kept the pool from starting."""
        self._thread.start()
        try:
            self._started.result(START_S)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process and the thread."""
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_S)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        starting = asyncio.create_task(self._pool.start())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                self._started.set_result(None)
            await stopping
        except Exception as error:
            self._started.set_exception(error)
        finally:
            starting.cancel()
            stopping.cancel()
            await self._pool.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
