"""Bounded memory in which chunks wait for the wire.

One arena a port, in anonymous shared memory (memfd): a receiver on the same host maps it through
the descriptor that is passed to it, and there is no name in /dev/shm that a killed process could
leave behind. Its pages are touched only as they are used.

In front of each slab stands a word that is the slab's token while the slab is valid. A receiver
that copies straight out of the arena looks at it before and after: when the sender had given up
the link and reused the memory in between, the word differs and the copy is thrown away.
"""

import bisect
import fcntl
import itertools
import mmap
import os
import secrets
import struct
import threading
from collections.abc import Sequence

import torch

from services.kv_transfer.links.pages import Fence, KvPages, passed

ALIGN = 64
TOKEN_BYTES = ALIGN  # so that the payload is aligned as well
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

    def __init__(self, arena: "Arena", offset: int, nbytes: int, token: int) -> None:
        self._arena = arena
        self._start = offset
        self.offset = offset + TOKEN_BYTES
        self.nbytes = nbytes
        self.token = token
        self.fence: Fence = passed
        self._freed = False

    @property
    def size(self) -> int:
        return slab_size(self.nbytes)

    def memory(self) -> memoryview:
        return self._arena.memory(self.offset, self.nbytes)

    def tensor(self) -> torch.Tensor:
        return self._arena.bytes[self.offset : self.offset + self.nbytes]

    def free(self) -> None:
        self._arena.give_back(self)


def slab_size(nbytes: int) -> int:
    return TOKEN_BYTES + -(-nbytes // ALIGN) * ALIGN


class Arena:
    """Owns the shared memory; thread-safe."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.fd = os.memfd_create("dynaserve-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, capacity)
        # A receiver must never meet a hole where it has mapped memory.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        self._map = mmap.mmap(self.fd, capacity)
        self.bytes: torch.Tensor = torch.frombuffer(self._map, dtype=torch.uint8)
        self._lock = threading.Lock()
        self._extents = Extents(capacity)
        self._tokens = itertools.count(secrets.randbits(63) | 1)

    @property
    def in_use(self) -> int:
        return self._extents.in_use

    def reserve(self, nbytes: int) -> Slab | None:
        with self._lock:
            offset = self._extents.take(slab_size(nbytes))
            if offset is None:
                return None
            token = next(self._tokens)
            _TOKEN.pack_into(self._map, offset, token)
            return Slab(self, offset, nbytes, token)

    def give_back(self, slab: Slab) -> None:
        with self._lock:
            if slab._freed:
                return
            slab._freed = True
            _TOKEN.pack_into(self._map, slab._start, 0)
            self._extents.give(slab._start, slab.size)

    def memory(self, offset: int, nbytes: int) -> memoryview:
        return memoryview(self._map)[offset : offset + nbytes]

    def close(self) -> None:
        """The mapping itself goes with the last view of it."""
        self.bytes = torch.empty(0, dtype=torch.uint8)
        os.close(self.fd)
        try:
            self._map.close()
        except BufferError:
            pass  # a view is still held by a thread that is ending


def read_token(memory: mmap.mmap, payload_offset: int) -> int:
    """The word in front of a payload; for the receiver's mapping of somebody's arena."""
    word: int = _TOKEN.unpack_from(memory, payload_offset - TOKEN_BYTES)[0]
    return word


class Staging:
    """Gathers blocks of the cache into the arena, on the engine's thread."""

    def __init__(self, pages: KvPages, arena: Arena) -> None:
        self._pages = pages
        self._arena = arena
        self._block_bytes = pages.num_layers * pages.block_bytes
        self.max_blocks = (arena.capacity - TOKEN_BYTES - ALIGN) // self._block_bytes
        if self.max_blocks < 1:
            raise ValueError(
                f"staging of {arena.capacity} bytes cannot hold one block "
                f"of {pages.num_layers} layers, {self._block_bytes} bytes"
            )

    def stage(self, block_ids: Sequence[int]) -> Slab | None:
        """None when there is no room now."""
        slab = self._arena.reserve(len(block_ids) * self._block_bytes)
        if slab is None:
            return None
        shape = (self._pages.num_layers, len(block_ids), self._pages.block_bytes)
        slab.fence = self._pages.gather(block_ids, slab.tensor().view(shape))
        return slab
