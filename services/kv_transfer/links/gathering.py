"""Chunks whose gather the device has not done yet, between the engine's thread and their links.

The writer of a link must not wait for a forward pass, or offers behind it would; nor may a device
transfer be posted before its bytes are there, or the peer's device would spin on it. One thread a
port does the waiting, in the order of the engine's stream; once a chunk's first piece is there,
the others follow without a pause.
"""

import queue
import threading
import time

from services.kv_transfer.links.outgoing_link import ChunkJob


class Gathering:
    """Starts its thread with the first chunk: a port on CPU needs none."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[ChunkJob | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, name="kv-gather", daemon=True)
        self._lock = threading.Lock()

    def put(self, job: ChunkJob) -> None:
        self._jobs.put(job)
        with self._lock:
            if self._thread.ident is None:
                self._thread.start()

    def close(self, join_until: float) -> None:
        self._jobs.put(None)
        if self._thread.ident is not None:
            self._thread.join(max(0.0, join_until - time.monotonic()))

    def _live(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.slab.fences[0]()
            job.record.link.post(job)
