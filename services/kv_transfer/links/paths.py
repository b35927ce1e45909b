"""The transport seam: how the bytes of a chunk get from one worker to the other.

The two ends of a link first agree on a transport by name (hello, welcome), then each attaches its
end: ``dial`` gave the sender a socket, ``attach_sender``/``attach_receiver`` build what else is
needed, and may block, as they run on the link's own threads. From then on the sender's writing
thread calls ``send`` for one chunk after another, each preceded by its header on the socket, and
the receiver's reading thread, on receipt of that header, takes the chunk's spans from ``receive``.
So sends and receives are posted in the same order on both sides without further agreement, which
is what a two-rank NCCL communicator needs (it would post ``isend``/``irecv`` on a stream of its
own and yield spans of a device tensor). ``slab.fence`` separates the engine thread's gather from
the wire.
"""

import socket
from collections.abc import Iterator
from typing import Protocol

import torch

from services.kv_transfer.links.address import PortAddress
from services.kv_transfer.links.frames import Chunk, FrameSocket
from services.kv_transfer.links.pages import KvPages, Span
from services.kv_transfer.links.staging import Arena, Slab


class SendPath(Protocol):
    def send(self, wire: FrameSocket, chunk: Chunk, slab: Slab) -> None:
        """Header and payload; the slab stays until the receiver's ack."""

    def close(self) -> None: ...


class ReceivePath(Protocol):
    def receive(self, wire: FrameSocket, chunk: Chunk) -> Iterator[tuple[Span, torch.Tensor]]:
        """Spans in order, each with its rows [num_layers, num_rows, block_bytes], valid until
        the next is asked for. Must be exhausted, also when nobody wants the rows; only then
        are they known to be sound."""

    def close(self) -> None: ...


class Transport(Protocol):
    name: str

    def dial(self, address: PortAddress, timeout_s: float) -> socket.socket:
        """Raises PathUnavailable where another transport may do better."""

    def attach_sender(self, wire: FrameSocket, arena: Arena) -> SendPath: ...

    def attach_receiver(
        self, wire: FrameSocket, pages: KvPages, staging_bytes: int, piece_bytes: int
    ) -> ReceivePath: ...
