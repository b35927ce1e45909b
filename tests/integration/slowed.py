"""One instance made slow from outside, as a host that has too much to do would make it."""

import threading
from types import TracebackType
from typing import Self

from dynaserve.local_pool.background import BackgroundPool


class Slowed:
    """Stops and continues an instance's processes in turns until the block ends.

    Nothing in the instance takes part: it sees its steps take longer.
    """

    def __init__(
        self, pool: BackgroundPool, instance_id: str, stopped_s: float, running_s: float
    ) -> None:
        self._pool = pool
        self._instance_id = instance_id
        self._stopped_s = stopped_s
        self._running_s = running_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slowed")

    def _run(self) -> None:
        while not self._over.wait(self._running_s):
            self._pool.pause(self._instance_id)
            try:
                self._over.wait(self._stopped_s)
            finally:
                self._pool.resume(self._instance_id)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
