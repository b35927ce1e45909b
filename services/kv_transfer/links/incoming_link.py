"""The receiving end of a link: answers the hello, reads offers and chunks, writes ready and ack."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from services.kv_transfer.links.errors import LinkBroken, LinkError, PathUnavailable
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
from services.kv_transfer.links.link import Link, Outbox, say
from services.kv_transfer.links.pages import KvPages, Span
from services.kv_transfer.links.paths import ReceivePath, ReceivingEnd
from services.kv_transfer.links.transports import TRANSPORTS
from services.kv_transfer.links.tuning import LinkTuning

if TYPE_CHECKING:
    from services.kv_transfer.links.incoming import Receiver

log = logging.getLogger("dynaserve.kv_transfer.links")


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
            pages.scatter(span.layer, ids, rows[:, skip:])

    def wait_for_writer(self) -> None:
        """With ``ended`` set, nothing is written after this returns."""
        with self._writing:
            pass

    def fill(self, chunk: Chunk) -> None:
        start = max(0, chunk.first_block - self.first_block)
        end = max(start, chunk.first_block + chunk.num_blocks - self.first_block)
        self._filled[start:end] = b"\1" * (end - start)


@dataclass(frozen=True)
class Landing:
    """A chunk on its way into its blocks, or to nowhere when nobody expects it (any more)."""

    chunk: Chunk
    record: Incoming | None
    spans: Iterator[tuple[Span, torch.Tensor]]
    started_at: float


class IncomingLink(Link[Message]):
    """Where the transport posts ahead, a third thread takes the chunks as they come in."""

    def __init__(
        self, half: "Receiver", sock: socket.socket, transport: str, tuning: LinkTuning
    ) -> None:
        super().__init__(f"from {transport} fd {sock.fileno()}", tuning)
        self._half = half
        self._sock = sock
        self._accepted_over = transport
        self._path: ReceivePath | None = None
        self._staging_bytes = 0
        self._landed_at = 0.0
        self._landings: Outbox[Landing] = Outbox(tuning.outbox_messages)
        self._lander = threading.Thread(target=self._land_all, name="kv-land", daemon=True)

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
        if self._path is not None and self._path.posts_ahead:
            self._lander.start()
        wire.give_up_after(None)
        return wire

    def _attach(self, wire: FrameSocket, hello: Hello) -> None:
        transport = TRANSPORTS[hello.transport]
        try:
            end = ReceivingEnd(self._half.pages, self._half.inbox, hello.staging_bytes, self.tuning)
            self._path = transport.attach_receiver(wire, end)
        except (OSError, PathUnavailable) as error:
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
        assert self._path is not None
        pages = self._half.pages
        fits = pages.num_layers * pages.block_bytes * chunk.num_blocks
        if not 0 < chunk.nbytes == fits <= self._staging_bytes:
            raise LinkBroken(f"chunk of {chunk.num_blocks} blocks with {chunk.nbytes} bytes")
        started = time.monotonic()
        record = self._half.record_of(self, chunk)
        landing = Landing(chunk, record, self._path.receive(wire, chunk), started)
        if not self._path.posts_ahead:
            self._land(landing)
        elif not self._landings.put(landing):
            raise LinkBroken("the sender goes beyond what may be under way")

    def _land(self, landing: Landing) -> None:
        chunk, record = landing.chunk, landing.record
        started = max(landing.started_at, self._landed_at)
        for span, rows in landing.spans:
            if record is not None:
                record.write(self._half.pages, chunk, span, rows)
        self._landed_at = time.monotonic()
        took_s = self._landed_at - started
        self.busy_s += took_s
        self.bytes_moved += chunk.nbytes
        self.chunks_moved += 1
        self._half.has_landed(self, record, chunk, took_s)

    def _land_all(self) -> None:
        try:
            while (landing := self._landings.get()) is not None:
                self._land(landing)
        except LinkError as error:
            self.break_off(say(error))
        except Exception as error:  # the thread's edge
            log.exception("link %s: lander failed", self.name)
            self.break_off(say(error))

    def _abort(self) -> None:
        self._landings.close()
        if self._path is not None:
            self._path.abort()
        if self._lander.ident is not None:
            self._lander.join()

    def _lost(self, reason: str) -> None:
        self._half.link_lost(self, reason)

    def _released(self) -> None:
        if self.wire is None:
            self._sock.close()
        if self._path is not None:
            self._path.close()
        self._half.link_released(self)
