"""Transport ``tcp``: the payload follows its header on the same socket."""

import socket
from collections.abc import Iterator

import torch

from services.kv_transfer.links.address import PortAddress
from services.kv_transfer.links.errors import LinkBroken
from services.kv_transfer.links.frames import Chunk, FrameSocket
from services.kv_transfer.links.pages import KvPages, Span, cut_chunk
from services.kv_transfer.links.staging import Arena, Slab


class TcpSendPath:
    def send(self, wire: FrameSocket, chunk: Chunk, slab: Slab) -> None:
        slab.fence()
        wire.send(chunk, slab.memory())

    def close(self) -> None: ...


class TcpReceivePath:
    """Receives a span at a time into one small buffer that stays in the CPU's cache."""

    def __init__(self, pages: KvPages, piece_bytes: int) -> None:
        self._pages = pages
        self._limit = piece_bytes
        self._buffer = torch.empty(max(piece_bytes, pages.block_bytes), dtype=torch.uint8)
        self._memory = memoryview(self._buffer.numpy())

    def receive(self, wire: FrameSocket, chunk: Chunk) -> Iterator[tuple[Span, torch.Tensor]]:
        block_bytes = self._pages.block_bytes
        for span in cut_chunk(self._pages.num_layers, chunk.num_blocks, block_bytes, self._limit):
            nbytes = span.num_layers * span.num_rows * block_bytes
            wire.receive_into(self._memory[:nbytes])
            yield span, self._buffer[:nbytes].view(span.num_layers, span.num_rows, block_bytes)

    def close(self) -> None: ...


class TcpTransport:
    name = "tcp"

    def dial(self, address: PortAddress, timeout_s: float) -> socket.socket:
        try:
            return socket.create_connection((address.host, address.tcp_port), timeout_s)
        except OSError as error:
            raise LinkBroken(f"{address.host}:{address.tcp_port}: {error}") from error

    def attach_sender(self, wire: FrameSocket, arena: Arena) -> TcpSendPath:
        return TcpSendPath()

    def attach_receiver(
        self, wire: FrameSocket, pages: KvPages, staging_bytes: int, piece_bytes: int
    ) -> TcpReceivePath:
        return TcpReceivePath(pages, piece_bytes)
