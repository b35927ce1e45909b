"""The sending end of a link: dials, writes offers and chunks, reads ready, ack and cancel."""

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.kv_transfer.links.address import PortAddress
from services.kv_transfer.links.errors import LinkBroken, PathUnavailable
from services.kv_transfer.links.frames import (
    Ack,
    Attached,
    Cancel,
    Chunk,
    FrameSocket,
    Message,
    Ready,
    Welcome,
)
from services.kv_transfer.links.handshake import expect
from services.kv_transfer.links.link import Link
from services.kv_transfer.links.paths import SendPath
from services.kv_transfer.links.staging import Slab, Staging
from services.kv_transfer.links.transports import TRANSPORTS

if TYPE_CHECKING:
    from services.kv_transfer.links.outgoing import Sender

log = logging.getLogger("dynaserve.kv_transfer.links")


@dataclass(frozen=True)
class OutgoingState:
    """Where an outgoing handoff stands. ``cursor`` is the first block not staged yet."""

    epoch: int
    first_block: int | None  # None until the receiver is ready
    cursor: int
    sent: bool = False
    failed: str | None = None


class Outgoing:
    """Record of one handoff; its fields are read and written under the half's lock."""

    def __init__(
        self, link: "OutgoingLink", handoff_id: str, epoch: int, num_blocks: int, deadline: float
    ) -> None:
        self.link = link
        self.handoff_id = handoff_id
        self.epoch = epoch
        self.num_blocks = num_blocks
        self.deadline = deadline
        self.offered_at = time.monotonic()
        self.first_block: int | None = None
        self.cursor = 0
        self.last_staged_at: float | None = None
        self.num_chunks = 0
        self.num_bytes = 0
        self.unconfirmed = 0
        self.busy_since = 0.0
        self.busy_s = 0.0
        self.ended = False

    def state(self, *, sent: bool = False, failed: str | None = None) -> OutgoingState:
        return OutgoingState(self.epoch, self.first_block, self.cursor, sent, failed)

    def what_is_wrong_with(self, first_block: int, num_blocks: int, last: bool) -> str | None:
        """Why this may not be the next chunk; None when it may."""
        end = first_block + num_blocks
        if num_blocks < 1 or first_block < 0 or end > self.num_blocks:
            return f"chunk [{first_block}, {end}) is not within [0, {self.num_blocks})"
        if first_block > self.cursor:
            return f"chunk from block {first_block} leaves a gap after block {self.cursor}"
        if last and end != self.num_blocks:
            return f"last chunk ends at block {end} of {self.num_blocks}"
        return None


@dataclass(frozen=True)
class ChunkJob:
    record: Outgoing
    chunk: Chunk
    slab: Slab


class OutgoingLink(Link[Message | ChunkJob]):
    """Dials; writes offers and chunks; reads ready, ack and cancel."""

    def __init__(self, half: "Sender", peer: PortAddress, transports: list[str]) -> None:
        super().__init__(f"to {peer.host}:{peer.tcp_port}", half.tuning)
        self.peer = peer
        self.under_way: dict[int, ChunkJob] = {}  # staged and not acknowledged; half's lock
        self.released = False  # nobody will free what is put under way now
        self.on_wire = 0
        self.busy_since = 0.0
        self._half = half
        self._transports = transports
        self._path: SendPath | None = None
        self._staging: Staging | None = None

    @property
    def staging(self) -> Staging:
        """Where its chunks are gathered; known once it is connected."""
        assert self._staging is not None
        return self._staging

    @property
    def overdue_at(self) -> float:
        """When a transfer that makes no progress has lost the link (monotonic seconds)."""
        watched = self.on_wire and TRANSPORTS[self.transport].builds
        return self.busy_since + self.tuning.stall_timeout_s if watched else float("inf")

    def _connect(self) -> FrameSocket:
        for name in self._transports[:-1]:
            try:
                return self._connect_over(name)
            except PathUnavailable as error:
                self._half.fallbacks += 1
                log.warning("link %s: %s; trying the next transport", self.name, error)
        return self._connect_over(self._transports[-1])

    def _connect_over(self, name: str) -> FrameSocket:
        transport = TRANSPORTS[name]
        sock = transport.dial(self.peer, self.tuning.connect_timeout_s)
        wire = self.wire = FrameSocket(sock, self.tuning.stall_timeout_s)
        try:
            wire.give_up_after(self.tuning.connect_timeout_s)
            self._staging = self._half.staging_for(transport)
            wire.send(self._half.hello(self.peer, name, self._staging.arena.capacity))
            expect(wire, Welcome)
            if transport.builds:
                wire.give_up_after(self.tuning.build_timeout_s)
            self._path = transport.attach_sender(wire, self._staging, self.tuning)
            expect(wire, Attached)
            wire.give_up_after(None)
        except BaseException:
            self.wire = None
            wire.close()
            raise
        self.transport = name
        return wire

    def _write_one(self, wire: FrameSocket, job: Message | ChunkJob) -> None:
        if not isinstance(job, ChunkJob):
            wire.send(job)
        elif self._half.goes_out(self, job):
            assert self._path is not None
            self._path.send(wire, job.chunk, job.slab)

    def _read_one(self, wire: FrameSocket, message: Message) -> None:
        match message:
            case Ready():
                self._half.is_ready(self, message)
            case Ack():
                chunk = self._half.is_confirmed(self, message.seq)
                assert self._path is not None
                self._path.confirmed(chunk)
            case Cancel():
                self._half.is_cancelled(self, message)
            case _:
                raise LinkBroken(f"unexpected {type(message).__name__} from a receiver")

    def _lost(self, reason: str) -> None:
        self._half.link_lost(self, reason)

    def _abort(self) -> None:
        if self._path is not None:
            self._path.abort()

    def _released(self) -> None:
        self._half.link_released(self)
        if self._path is not None:
            self._path.close()
