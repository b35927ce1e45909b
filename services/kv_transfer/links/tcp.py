"""Transport ``tcp``: the payload follows its header on the same socket."""

import socket
from collections.abc import Iterator

import torch

from services.kv_transfer.links.address import PortAddress
from services.kv_transfer.links.errors import LinkBroken
from services.kv_transfer.links.frames import Chunk, FrameSocket
from services.kv_transfer.links.pages import KvPages, Span, cut_chunk
from services.kv_transfer.links.paths import MemoryKind, ReceivingEnd, Socket
from services.kv_transfer.links.staging import Slab, Staging
from services.kv_transfer.links.tuning import LinkTuning


class TcpSendPath:
    def send(self, wire: FrameSocket, chunk: Chunk, slab: Slab) -> None:
        slab.settle()
        wire.send(chunk, slab.memory())

    def confirmed(self, chunk: Chunk) -> None: ...

    def abort(self) -> None: ...

    def close(self) -> None: ...


class TcpReceivePath:
    """Receives a span at a time into one small buffer that stays in the CPU's cache."""

    posts_ahead = False

    def __init__(self, pages: KvPages, piece_bytes: int) -> None:
        self._pages = pages
        self._limit = piece_bytes
        self._buffer = pages.host_buffer(max(piece_bytes, pages.block_bytes))
        self._memory = memoryview(self._buffer.numpy())

    def receive(self, wire: FrameSocket, chunk: Chunk) -> Iterator[tuple[Span, torch.Tensor]]:
        block_bytes = self._pages.block_bytes
        for span in cut_chunk(self._pages.num_layers, chunk.num_blocks, block_bytes, self._limit):
            nbytes = span.num_layers * span.num_rows * block_bytes
            wire.receive_into(self._memory[:nbytes])
            yield span, self._buffer[:nbytes].view(span.num_layers, span.num_rows, block_bytes)

    def abort(self) -> None: ...

    def close(self) -> None: ...


def dial_tcp(address: PortAddress, timeout_s: float) -> socket.socket:
    try:
        return socket.create_connection((address.host, address.tcp_port), timeout_s)
    except OSError as error:
        raise LinkBroken(f"{address.host}:{address.tcp_port}: {error}") from error


class TcpTransport:
    name = "tcp"
    listens_on: Socket = "tcp"
    memory: MemoryKind = "shared"
    builds = False

    def dial(self, address: PortAddress, timeout_s: float) -> socket.socket:
        return dial_tcp(address, timeout_s)

    def attach_sender(self, wire: FrameSocket, staging: Staging, tuning: LinkTuning) -> TcpSendPath:
        return TcpSendPath()

    def attach_receiver(self, wire: FrameSocket, end: ReceivingEnd) -> TcpReceivePath:
        return TcpReceivePath(end.pages, end.tuning.piece_bytes)
