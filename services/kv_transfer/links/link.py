"""One link: a socket, a thread that writes and a thread that reads.

The writing thread owns the link's life: it connects and shakes hands, starts the reader, writes
what is queued, and at the end joins the reader and closes the descriptor. Whoever notices the end
first (either thread, or close()) says why; everything on the link fails at that moment.
"""

import logging
import threading
from collections import deque
from typing import Generic, TypeVar

from services.kv_transfer.links.errors import LinkBroken, LinkError
from services.kv_transfer.links.frames import FrameSocket, Message
from services.kv_transfer.links.tuning import LinkTuning

log = logging.getLogger("dynaserve.kv_transfer.links")
Job = TypeVar("Job")


class Outbox(Generic[Job]):
    """Bounded queue to the writing thread."""

    def __init__(self, limit: int) -> None:
        self._jobs: deque[Job] = deque()
        self._limit = limit
        self._open = True
        self._changed = threading.Condition()

    def put(self, job: Job) -> bool:
        """False when it is full or closed."""
        with self._changed:
            if not self._open or len(self._jobs) >= self._limit:
                return False
            self._jobs.append(job)
            self._changed.notify()
            return True

    def get(self) -> Job | None:
        """The next job, or None once closed."""
        with self._changed:
            while self._open and not self._jobs:
                self._changed.wait()
            return self._jobs.popleft() if self._open else None

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._jobs.clear()
            self._changed.notify_all()


class Link(Generic[Job]):
    """Base of both directions; see the module's docstring."""

    def __init__(self, name: str, tuning: LinkTuning) -> None:
        self.name = name
        self.tuning = tuning
        self.wire: FrameSocket | None = None
        self.transport = ""
        self.bytes_moved = 0
        self.chunks_moved = 0
        self.busy_s = 0.0
        self._outbox: Outbox[Job] = Outbox(tuning.outbox_messages)
        self._over = threading.Lock()
        self._reason: str | None = None
        self._writer = threading.Thread(target=self._live, name=f"kv-write {name}", daemon=True)
        self._reader = threading.Thread(target=self._read, name=f"kv-read {name}", daemon=True)

    # What the two directions fill in.
    def _connect(self) -> FrameSocket:
        raise NotImplementedError

    def _write_one(self, wire: FrameSocket, job: Job) -> None:
        raise NotImplementedError

    def _read_one(self, wire: FrameSocket, message: Message) -> None:
        raise NotImplementedError

    def _lost(self, reason: str) -> None:
        """Called once, by the first to notice."""
        raise NotImplementedError

    def _abort(self) -> None:
        """End what the transport has under way, so that no thread waits for it."""
        raise NotImplementedError

    def _released(self) -> None:
        """All threads are done: let go of what the transport holds."""
        raise NotImplementedError

    def start(self) -> None:
        self._writer.start()

    def post(self, job: Job) -> bool:
        """Queue for writing; a peer that leaves the queue to fill up has lost the link."""
        if self._outbox.put(job):
            return True
        self.break_off("the peer takes no more messages")
        return False

    def break_off(self, reason: str) -> None:
        with self._over:
            if self._reason is not None:
                return
            self._reason = reason
        self._outbox.close()
        if (wire := self.wire) is not None:
            wire.shutdown()
        self._lost(reason)

    @property
    def is_over(self) -> bool:
        return self._reason is not None

    def join(self, timeout_s: float) -> bool:
        self._writer.join(timeout_s)
        return not self._writer.is_alive()

    def _live(self) -> None:
        try:
            self.wire = self._connect()
            if self._reason is not None:  # closed while connecting
                return
            self._reader.start()
            while (job := self._outbox.get()) is not None:
                self._write_one(self.wire, job)
        except (LinkError, OSError) as error:
            self.break_off(say(error))
        except Exception as error:  # the thread's edge
            log.exception("link %s: writer failed", self.name)
            self.break_off(say(error))
        finally:
            self._end()

    def _read(self) -> None:
        assert self.wire is not None
        try:
            while True:
                self._read_one(self.wire, self.wire.receive())
        except (LinkError, OSError) as error:
            self.break_off(say(error))
        except Exception as error:  # the thread's edge
            log.exception("link %s: reader failed", self.name)
            self.break_off(say(error))

    def _end(self) -> None:
        self.break_off("closed")
        self._abort()
        if self._reader.ident is not None:
            self._reader.join()
        if self.wire is not None:
            self.wire.close()
        self._released()


def say(error: Exception) -> str:
    return str(error) if isinstance(error, LinkBroken) else f"{type(error).__name__}: {error}"
