"""Bounded memory in which chunks wait for the wire.

``SharedArena`` is anonymous shared memory (memfd): a receiver on the same host maps it through the
descriptor that is passed to it, and there is no name in /dev/shm that a killed process could leave
behind. Its pages are touched only as they are used. ``DeviceArena`` lies where the cache lies and
serves the transports that join devices.

In front of each slab of shared memory stands a word that is the slab's token while the slab is
valid. A receiver that copies straight out of the arena looks at it before and after: when the
sender had given up the link and reused the memory in between, the word differs and the copy is
thrown away.
"""

import bisect
import fcntl
import itertools
import mmap
import os
import secrets
import struct
import threading
import time
from collections.abc import Sequence

import torch

from services.kv_transfer.links.cuda_pages import pin, unpin
from services.kv_transfer.links.pages import Fence, KvPages

ALIGN = 64  # NCCL and vector loads want 16
_TOKEN = struct.Struct("=Q")


class Extents:
    """First-fit allocation of [0, capacity), neighbours merged on return."""

    def __init__(self, capacity: int) -> None:
        self._free = [(0, capacity)]
        self.in_use = 0

    def take(self, size: int) -> int | None:
        for i, (offset, length) in enumerate(self._free):
            if length >= size:
                rest = (offset + size, length - size)
                self._free[i : i + 1] = [rest] if rest[1] else []
                self.in_use += size
                return offset
        return None

    def give(self, offset: int, size: int) -> None:
        self.in_use -= size
        i = bisect.bisect(self._free, (offset, 0))
        self._free.insert(i, (offset, size))
        for left in (i, i - 1):
            if 0 <= left < len(self._free) - 1:
                (a, n), (b, m) = self._free[left : left + 2]
                if a + n == b:
                    self._free[left : left + 2] = [(a, n + m)]


class Slab:
    """Memory of one chunk; valid until free(), which may be called more than once."""

    def __init__(self, arena: "Arena", start: int, nbytes: int, token: int) -> None:
        self._arena = arena
        self.start = start
        self.offset = start + arena.head_bytes
        self.nbytes = nbytes
        self.token = token
        self.fences: list[Fence] = []  # one for each of its pieces, or one for all
        self.is_freed = False

    def settle(self) -> None:
        """Wait until all of it is gathered."""
        for fence in self.fences:
            fence()

    def memory(self) -> memoryview:
        return self._arena.memory(self.offset, self.nbytes)

    def tensor(self) -> torch.Tensor:
        return self._arena.bytes[self.offset : self.offset + self.nbytes]

    def free(self) -> None:
        self._arena.give_back(self)


class Arena:
    """Owns ``bytes`` and hands out slabs of it; thread-safe."""

    head_bytes = 0  # in front of each payload

    def __init__(self, memory: torch.Tensor) -> None:
        self.bytes = memory
        self.capacity: int = memory.numel()
        self._changed = threading.Condition()
        self._extents = Extents(self.capacity)
        self._tokens = itertools.count(secrets.randbits(63) | 1)

    @property
    def in_use(self) -> int:
        return self._extents.in_use

    @property
    def max_payload(self) -> int:
        return self.capacity - self.head_bytes - ALIGN

    def reserve(self, nbytes: int, patience_s: float = 0.0) -> Slab | None:
        """None when there is no room within ``patience_s``."""
        give_up = time.monotonic() + patience_s
        size = self._size(nbytes)
        with self._changed:
            while (start := self._extents.take(size)) is None:
                if not self._changed.wait(max(0.0, give_up - time.monotonic())):
                    return None
            slab = Slab(self, start, nbytes, next(self._tokens))
            self._mark(start, slab.token)
            return slab

    def give_back(self, slab: Slab) -> None:
        with self._changed:
            if slab.is_freed:
                return
            slab.is_freed = True
            self._mark(slab.start, 0)
            self._extents.give(slab.start, self._size(slab.nbytes))
            self._changed.notify_all()

    def _size(self, nbytes: int) -> int:
        return self.head_bytes + -(-nbytes // ALIGN) * ALIGN

    def _mark(self, start: int, token: int) -> None:
        """Write a slab's token in front of it, where there is room for one."""

    def memory(self, offset: int, nbytes: int) -> memoryview:
        return memoryview(self.bytes[offset : offset + nbytes].numpy())

    def close(self) -> None:
        self.bytes = torch.empty(0, dtype=torch.uint8)


class DeviceArena(Arena):
    """Plain memory of a device, taken at once."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        super().__init__(torch.empty(capacity, dtype=torch.uint8, device=device))


class SharedArena(Arena):
    """Host memory that a process to which ``fd`` is passed can map."""

    head_bytes = ALIGN  # a token; the payload is aligned as well

    def __init__(self, capacity: int) -> None:
        self.fd = os.memfd_create("dynaserve-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, capacity)
        # A receiver must never meet a hole where it has mapped memory.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        self._map = mmap.mmap(self.fd, capacity)
        self._pinned = False
        super().__init__(torch.frombuffer(self._map, dtype=torch.uint8))

    def _mark(self, start: int, token: int) -> None:
        _TOKEN.pack_into(self._map, start, token)

    def pin(self) -> None:
        """Make device copies into it asynchronous; once, and slow (it touches every page)."""
        with self._changed:
            if not self._pinned:
                pin(self.bytes)
                self._pinned = True

    def close(self) -> None:
        """The mapping itself goes with the last view of it."""
        if self._pinned:
            unpin(self.bytes)
        super().close()
        os.close(self.fd)
        try:
            self._map.close()
        except BufferError:
            pass  # a view is still held by a thread that is ending


def read_token(memory: mmap.mmap, payload_offset: int) -> int:
    """The word in front of a payload; for the receiver's mapping of somebody's arena."""
    word: int = _TOKEN.unpack_from(memory, payload_offset - SharedArena.head_bytes)[0]
    return word


class Staging:
    """Gathers blocks of the cache into an arena, on the engine's thread."""

    def __init__(self, pages: KvPages, arena: Arena, piece_bytes: int) -> None:
        self.arena = arena
        self.piece_bytes = piece_bytes
        self.pages = pages
        self._block_bytes = pages.num_layers * pages.block_bytes
        self.max_blocks = arena.max_payload // self._block_bytes
        if self.max_blocks < 1:
            raise ValueError(
                f"staging of {arena.capacity} bytes cannot hold one block "
                f"of {pages.num_layers} layers, {self._block_bytes} bytes"
            )

    def stage(self, block_ids: Sequence[int]) -> Slab | None:
        """None when there is no room now."""
        slab = self.arena.reserve(len(block_ids) * self._block_bytes)
        if slab is None:
            return None
        shape = (self.pages.num_layers, len(block_ids), self.pages.block_bytes)
        chunk = slab.tensor().view(shape)
        slab.fences = self.pages.gather(block_ids, chunk, self.piece_bytes)
        return slab
