"""Transport ``shm``: the receiver maps the sender's staging arena and copies from it.

The link's socket is then an abstract Unix one (its name dies with the process), over which the
arena's descriptor is passed once; no file or segment has a name. Linux only. Two containers on
one host that do not share a network namespace cannot reach each other this way: the dial says so
and the link takes TCP.
"""

import mmap
import os
import socket
from collections.abc import Iterator

import torch

from services.kv_transfer.links.address import PortAddress
from services.kv_transfer.links.errors import LinkBroken, PathUnavailable
from services.kv_transfer.links.frames import Chunk, FrameSocket
from services.kv_transfer.links.pages import KvPages, Span, cut_chunk
from services.kv_transfer.links.paths import MemoryKind, ReceivingEnd, Socket
from services.kv_transfer.links.staging import SharedArena, Slab, Staging, read_token
from services.kv_transfer.links.tuning import LinkTuning


class ShmSendPath:
    def send(self, wire: FrameSocket, chunk: Chunk, slab: Slab) -> None:
        slab.settle()
        wire.send(chunk)

    def confirmed(self, chunk: Chunk) -> None: ...

    def abort(self) -> None: ...

    def close(self) -> None: ...


class ShmReceivePath:
    posts_ahead = False

    def __init__(self, fd: int, pages: KvPages, staging_bytes: int, piece_bytes: int) -> None:
        self._pages = pages
        self._limit = piece_bytes
        try:
            if os.fstat(fd).st_size != staging_bytes:
                raise LinkBroken("the peer's staging memory has another size than announced")
            self._map = mmap.mmap(fd, staging_bytes)
        finally:
            os.close(fd)
        self._bytes: torch.Tensor = torch.frombuffer(self._map, dtype=torch.uint8)

    def receive(self, wire: FrameSocket, chunk: Chunk) -> Iterator[tuple[Span, torch.Tensor]]:
        self._check(chunk)
        block_bytes, at = self._pages.block_bytes, chunk.offset
        for span in cut_chunk(self._pages.num_layers, chunk.num_blocks, block_bytes, self._limit):
            nbytes = span.num_layers * span.num_rows * block_bytes
            rows = self._bytes[at : at + nbytes]
            yield span, rows.view(span.num_layers, span.num_rows, block_bytes)
            at += nbytes
        self._check(chunk)

    def _check(self, chunk: Chunk) -> None:
        inside = SharedArena.head_bytes <= chunk.offset <= len(self._map) - chunk.nbytes
        if not inside or read_token(self._map, chunk.offset) != chunk.token:
            raise LinkBroken("the sender gave up the memory of a chunk while it was copied")

    def abort(self) -> None: ...

    def close(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
        try:
            self._map.close()
        except BufferError:
            pass  # unmapped with the last view


class ShmTransport:
    name = "shm"
    listens_on: Socket = "unix"
    memory: MemoryKind = "shared"
    builds = False

    def dial(self, address: PortAddress, timeout_s: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            sock.connect("\0" + address.unix_name)
        except OSError as error:
            sock.close()
            raise PathUnavailable(f"no shared memory with {address.port_id}: {error}") from error
        return sock

    def attach_sender(self, wire: FrameSocket, staging: Staging, tuning: LinkTuning) -> ShmSendPath:
        assert isinstance(staging.arena, SharedArena)
        wire.send_fd(staging.arena.fd)
        return ShmSendPath()

    def attach_receiver(self, wire: FrameSocket, end: ReceivingEnd) -> ShmReceivePath:
        fd, piece_bytes = wire.receive_fd(), end.tuning.piece_bytes
        return ShmReceivePath(fd, end.pages, end.peer_staging_bytes, piece_bytes)
