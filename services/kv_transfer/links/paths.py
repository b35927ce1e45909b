"""The transport seam: how the bytes of a chunk get from one worker to the other.

The two ends of a link first agree on a transport by name (hello, welcome), then each attaches its
end: ``dial`` gave the sender a socket, ``attach_sender``/``attach_receiver`` build what else is
needed, and may block, as they run on the link's own threads. From then on the sender's writing
thread calls ``send`` for one chunk after another, each preceded by its header on the socket, and
the receiver's reading thread, on receipt of that header, takes the chunk's spans from ``receive``.
So sends and receives are posted in the same order on both sides without further agreement, which
is what a two-rank communicator needs.
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from services.kv_transfer.links.address import PortAddress
from services.kv_transfer.links.frames import Chunk, FrameSocket
from services.kv_transfer.links.pages import KvPages, Span
from services.kv_transfer.links.staging import Arena, Slab, Staging
from services.kv_transfer.links.tuning import LinkTuning


class SendPath(Protocol):
    def send(self, wire: FrameSocket, chunk: Chunk, slab: Slab) -> None:
        """Header and payload of a chunk of which the first piece is gathered, and the rest follows
        at once; the slab stays until it is confirmed."""

    def confirmed(self, chunk: Chunk) -> None:
        """The receiver has it; called by the link's reader."""

    def abort(self) -> None:
        """The link is over: end what is under way. Called once, before close()."""

    def close(self) -> None: ...


class ReceivePath(Protocol):
    posts_ahead: bool
    """``receive`` only posts: further chunks may be posted before its spans are taken, in order
    and by another thread."""

    def receive(self, wire: FrameSocket, chunk: Chunk) -> Iterator[tuple[Span, torch.Tensor]]:
        """Spans in order, each with its rows [num_layers, num_rows, block_bytes], valid until
        the next is asked for. Must be exhausted, also when nobody wants the rows; only then
        are they known to be sound."""

    def abort(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class ReceivingEnd:
    """What a receiver attaches."""

    pages: KvPages
    inbox: Arena | None  # where chunks land on the device; None without device transports
    peer_staging_bytes: int
    tuning: LinkTuning


Socket = Literal["unix", "tcp"]
MemoryKind = Literal["shared", "device"]


class Transport(Protocol):
    name: str
    listens_on: Socket  # of the link's messages
    memory: MemoryKind  # in which chunks wait for it
    builds: bool  # attaching takes long, and a silent peer is worth a watchdog

    def dial(self, address: PortAddress, timeout_s: float) -> socket.socket:
        """Raises PathUnavailable where another transport may do better."""

    def attach_sender(
        self, wire: FrameSocket, staging: Staging, tuning: LinkTuning
    ) -> SendPath: ...

    def attach_receiver(self, wire: FrameSocket, end: ReceivingEnd) -> ReceivePath: ...
