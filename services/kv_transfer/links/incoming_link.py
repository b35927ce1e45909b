"""The receiving end of a link: answers the hello, reads offers and chunks, writes ready and ack."""

import socket
import threading
import time
from typing import TYPE_CHECKING

import torch

from services.kv_transfer.links.errors import LinkBroken, LinkError
from services.kv_transfer.links.frames import (
    Attached,
    Chunk,
    FrameSocket,
    Hello,
    Message,
    Offer,
    Refuse,
    Welcome,
    Withdraw,
    short,
)
from services.kv_transfer.links.link import Link
from services.kv_transfer.links.pages import KvPages, Span
from services.kv_transfer.links.paths import ReceivePath
from services.kv_transfer.links.transports import TRANSPORTS
from services.kv_transfer.links.tuning import LinkTuning

if TYPE_CHECKING:
    from services.kv_transfer.links.incoming import Receiver


class Incoming:
    """Record of one handoff; all but ``write`` runs under the half's lock."""

    def __init__(
        self, handoff_id: str, epoch: int, first_block: int, block_ids: list[int], deadline: float
    ) -> None:
        self.handoff_id = handoff_id
        self.epoch = epoch
        self.first_block = first_block
        self.block_ids = block_ids
        self.deadline = deadline
        self.expected_at = time.monotonic()
        self.link: IncomingLink | None = None  # once it is offered
        self.num_bytes = 0
        self.num_chunks = 0
        self.busy_s = 0.0
        self.ended = False
        self._filled = bytearray(len(block_ids))
        self._writing = threading.Lock()

    @property
    def end_block(self) -> int:
        return self.first_block + len(self.block_ids)

    @property
    def num_missing(self) -> int:
        return self._filled.count(0)

    def write(self, pages: KvPages, chunk: Chunk, span: Span, rows: torch.Tensor) -> None:
        """Scatter one span unless the handoff has ended; blocks before the first are not ours."""
        at = chunk.first_block + span.row - self.first_block
        skip = max(0, -at)
        ids = self.block_ids[at + skip : at + span.num_rows] if skip < span.num_rows else []
        if self.ended or not ids:
            return
        with self._writing:
            if self.ended:
                return
            for i in range(span.num_layers):
                pages.scatter(span.layer + i, ids, rows[i, skip:])

    def wait_for_writer(self) -> None:
        """With ``ended`` set, nothing is written after this returns."""
        with self._writing:
            pass

    def fill(self, chunk: Chunk) -> None:
        start = max(0, chunk.first_block - self.first_block)
        end = max(start, chunk.first_block + chunk.num_blocks - self.first_block)
        self._filled[start:end] = b"\1" * (end - start)


class IncomingLink(Link[Message]):
    def __init__(
        self, half: "Receiver", sock: socket.socket, transport: str, tuning: LinkTuning
    ) -> None:
        super().__init__(f"from {transport} fd {sock.fileno()}", tuning)
        self._half = half
        self._sock = sock
        self._accepted_over = transport
        self._path: ReceivePath | None = None
        self._staging_bytes = 0

    def _connect(self) -> FrameSocket:
        wire = self.wire = FrameSocket(self._sock, self.tuning.stall_timeout_s)
        wire.give_up_after(self.tuning.connect_timeout_s)
        try:
            hello = wire.receive()
            if not isinstance(hello, Hello):
                raise LinkBroken(f"unexpected {type(hello).__name__} instead of a hello")
            if (wrong := self._half.what_is_wrong_with(hello, self._accepted_over)) is not None:
                raise LinkBroken(wrong)
        except LinkError as error:
            wire.send(Refuse(short(str(error))))
            raise
        wire.send(Welcome())
        self._attach(wire, hello)
        wire.send(Attached())
        wire.give_up_after(None)
        return wire

    def _attach(self, wire: FrameSocket, hello: Hello) -> None:
        transport = TRANSPORTS[hello.transport]
        try:
            self._path = transport.attach_receiver(
                wire, self._half.pages, hello.staging_bytes, self.tuning.piece_bytes
            )
        except OSError as error:
            wire.send(Refuse(short(f"{hello.transport}: {error}"), retry_other=True))
            raise
        self.transport = hello.transport
        self.name = f"from {hello.port_id}"
        self._staging_bytes = hello.staging_bytes

    def _write_one(self, wire: FrameSocket, job: Message) -> None:
        wire.send(job)

    def _read_one(self, wire: FrameSocket, message: Message) -> None:
        match message:
            case Offer():
                self._half.is_offered(self, message)
            case Chunk():
                self._take(wire, message)
            case Withdraw():
                self._half.is_withdrawn(self, message)
            case _:
                raise LinkBroken(f"unexpected {type(message).__name__} from a sender")

    def _take(self, wire: FrameSocket, chunk: Chunk) -> None:
        """Receive one chunk into its blocks, or to nowhere when nobody expects it (any more)."""
        assert self._path is not None
        started = time.monotonic()
        pages = self._half.pages
        fits = pages.num_layers * pages.block_bytes * chunk.num_blocks
        if not 0 < chunk.nbytes == fits <= self._staging_bytes:
            raise LinkBroken(f"chunk of {chunk.num_blocks} blocks with {chunk.nbytes} bytes")
        record = self._half.record_of(self, chunk)
        for span, rows in self._path.receive(wire, chunk):
            if record is not None:
                record.write(pages, chunk, span, rows)
        took_s = time.monotonic() - started
        self.busy_s += took_s
        self.bytes_moved += chunk.nbytes
        self.chunks_moved += 1
        self._half.has_landed(self, record, chunk, took_s)

    def _lost(self, reason: str) -> None:
        self._half.link_lost(self, reason)

    def _released(self) -> None:
        if self.wire is None:
            self._sock.close()
        if self._path is not None:
            self._path.close()
        self._half.link_released(self)
