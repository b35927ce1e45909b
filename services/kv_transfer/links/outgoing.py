"""The sending half of a port: what becomes of each outgoing handoff."""

import itertools
import time
from collections.abc import Callable, Sequence

from services.kv_transfer.links.address import PortAddress, transports_from
from services.kv_transfer.links.errors import LinkBroken, TransportRefused
from services.kv_transfer.links.events import Failed, News, Readied, Sent
from services.kv_transfer.links.frames import Cancel, Chunk, Hello, Offer, Ready, Withdraw, short
from services.kv_transfer.links.gathering import Gathering
from services.kv_transfer.links.half import Half, LinkStats, Mail, Memory
from services.kv_transfer.links.outgoing_link import (
    ChunkJob,
    Outgoing,
    OutgoingLink,
    OutgoingState,
)
from services.kv_transfer.links.paths import MemoryKind, Transport
from services.kv_transfer.links.staging import SharedArena, Slab, Staging
from services.kv_transfer.links.tuning import LinkTuning

LinkKey = tuple[str, tuple[str, ...]]


class Sender(Half):
    """See the methods of the same names on KvPort."""

    def __init__(
        self,
        stagings: dict[MemoryKind, Staging],
        local: PortAddress,
        geometry: str,
        news: News,
        tuning: LinkTuning,
        kick: Callable[[float], None],
    ) -> None:
        super().__init__(news, tuning, kick)
        self.tuning = tuning
        self.fallbacks = 0
        self.totals: dict[str, int] = {}  # bytes confirmed, by transport
        self._stagings = stagings
        self._local = local
        self._geometry = geometry
        self._live: dict[str, Outgoing] = {}
        self._past: Memory[OutgoingState] = Memory(tuning.remembered_handoffs)
        self._links: dict[LinkKey, OutgoingLink] = {}
        self._leaving: set[OutgoingLink] = set()  # broken, threads not ended yet
        self._seq = itertools.count()
        self._gathering = Gathering()
        self._short_of_room = False
        self._closed = False

    def hello(self, peer: PortAddress, transport: str, staging_bytes: int) -> Hello:
        local = self._local.port_id
        return Hello(local, peer.port_id, self._geometry, transport, staging_bytes)

    def staging_for(self, transport: Transport) -> Staging:
        """May take a while: called by the link's thread."""
        staging = self._stagings[transport.memory]
        if self._local.device and isinstance(staging.arena, SharedArena):
            staging.arena.pin()
        return staging

    # -- called by the engine's thread

    def offer(
        self,
        handoff_id: str,
        epoch: int,
        num_blocks: int,
        peer_address: str,
        transport: str | None,
        deadline_s: float,
    ) -> None:
        peer = PortAddress.decode(peer_address)
        deadline = time.monotonic() + deadline_s
        with self._changing() as mail:
            if not self._is_new(handoff_id, epoch):
                return
            if (older := self._live.get(handoff_id)) is not None:
                self._drop(mail, older, f"superseded by epoch {epoch}")
            try:
                link = self._link_to(peer, transport)
            except TransportRefused as error:
                self._news.add_failed(Failed(handoff_id, epoch, str(error), 0), outgoing=True)
                self._past.keep(handoff_id, OutgoingState(epoch, None, 0, failed=str(error)))
                return
            self._live[handoff_id] = Outgoing(link, handoff_id, epoch, num_blocks, deadline)
            mail.append((link, Offer(handoff_id, epoch, num_blocks, deadline_s)))
        self._kick(deadline)

    def _is_new(self, handoff_id: str, epoch: int) -> bool:
        """False for a repeated offer, and for an older one than is known, which fails."""
        live, past = self._live.get(handoff_id), self._past.get(handoff_id)
        known = max(live.epoch if live else -1, past.epoch if past else -1)
        if epoch < known:
            reason = f"epoch {epoch} is older than {known}"
            self._news.add_failed(Failed(handoff_id, epoch, reason, 0), outgoing=True)
        return epoch > known

    def _link_to(self, peer: PortAddress, preferred: str | None) -> OutgoingLink:
        if self._closed:
            raise TransportRefused("the port is closed")
        names = transports_from(self._local, peer, preferred)
        key = (peer.port_id, tuple(names))
        link = self._links.get(key)
        if link is None or link.is_over:
            link = self._links[key] = OutgoingLink(self, peer, names)
            link.start()
        return link

    def outgoing(self, handoff_id: str) -> OutgoingState | None:
        with self._lock:
            record = self._live.get(handoff_id)
            return record.state() if record else self._past.get(handoff_id)

    def stage(
        self, handoff_id: str, first_block: int, block_ids: Sequence[int], last: bool
    ) -> bool:
        with self._changing() as mail:
            record = self._live.get(handoff_id)
            if record is None or record.first_block is None or record.last_staged_at is not None:
                return False
            wrong = record.what_is_wrong_with(first_block, len(block_ids), last)
            staging = record.link.staging
            if wrong is None and len(block_ids) > staging.max_blocks:
                wrong = f"{len(block_ids)} blocks in a chunk; staging holds {staging.max_blocks}"
            if wrong is not None:
                self._fail(mail, record, wrong)
                return False
            if len(record.link.under_way) >= self.tuning.outbox_messages // 2:
                self._short_of_room = True
                return False
        slab = staging.stage(block_ids) or self._stage_or_wait(staging, block_ids)
        if slab is None:
            return False
        return self._queue(record, first_block, len(block_ids), last, slab)

    def _stage_or_wait(self, staging: Staging, block_ids: Sequence[int]) -> Slab | None:
        """Ask to be told of room before trying again, so that none that returns is missed."""
        with self._lock:
            self._short_of_room = True
        return staging.stage(block_ids)

    @property
    def max_blocks(self) -> int:
        return min(staging.max_blocks for staging in self._stagings.values())

    def _queue(
        self, record: Outgoing, first_block: int, num_blocks: int, last: bool, slab: Slab
    ) -> bool:
        with self._lock:
            job = self._chunk_job(record, first_block, num_blocks, last, slab)
            if record.link.released:
                slab.settle()
                slab.free()
                return False
            record.link.under_way[job.chunk.seq] = job
            if not record.ended:
                record.cursor = max(record.cursor, first_block + num_blocks)
                record.unconfirmed += 1
                record.last_staged_at = time.monotonic() if last else None
        # Also when the handoff ended meanwhile: the writer frees the slab once it is gathered.
        if not slab.fences:
            return record.link.post(job) and not record.ended
        self._gathering.put(job)
        return not record.ended

    def _chunk_job(
        self, record: Outgoing, first_block: int, num_blocks: int, last: bool, slab: Slab
    ) -> ChunkJob:
        chunk = Chunk(
            record.handoff_id,
            record.epoch,
            next(self._seq),
            first_block,
            num_blocks,
            last,
            slab.nbytes,
            slab.offset,
            slab.token,
            record.link.staging.piece_bytes,
        )
        return ChunkJob(record, chunk, slab)

    def withdraw(self, handoff_id: str, reason: str) -> None:
        with self._changing() as mail:
            if (record := self._live.get(handoff_id)) is not None:
                self._drop(mail, record, reason)
            self._news.forget(handoff_id, outgoing=True)

    # -- called by the link's threads

    def goes_out(self, link: OutgoingLink, job: ChunkJob) -> bool:
        """The writer is about to send; False when the handoff ended while the chunk waited."""
        now = time.monotonic()
        if job.record.ended:
            job.slab.settle()
            self._free(link, job.chunk.seq)
            return False
        with self._lock:
            if link.on_wire == 0:
                link.busy_since = now
            link.on_wire += 1
            if job.record.busy_since == 0.0:
                job.record.busy_since = now
        if link.overdue_at < float("inf"):
            self._kick(link.overdue_at)
        return True

    def is_ready(self, link: OutgoingLink, message: Ready) -> None:
        with self._changing() as mail:
            record = self._match(link, message)
            if record is None or record.first_block is not None:
                return
            if not 0 <= message.first_block < record.num_blocks:
                self._fail(mail, record, f"the receiver asks for block {message.first_block}")
                return
            record.first_block = record.cursor = message.first_block
            wait_s = time.monotonic() - record.offered_at
            self._news.add(Readied(record.handoff_id, record.epoch, message.first_block, wait_s))

    def is_confirmed(self, link: OutgoingLink, seq: int) -> Chunk:
        now = time.monotonic()
        job = self._free(link, seq)
        if job is None:
            raise LinkBroken(f"ack of chunk {seq}, which is not under way")
        with self._changing():
            self._count(link, job.chunk, now)
            record = job.record
            if record.ended:
                return job.chunk
            record.num_bytes += job.chunk.nbytes
            record.num_chunks += 1
            record.unconfirmed -= 1
            record.busy_s += now - record.busy_since
            record.busy_since = now if record.unconfirmed else 0.0
            if record.last_staged_at is not None and record.unconfirmed == 0:
                self._finish(record, now, now - record.last_staged_at)
        return job.chunk

    def _count(self, link: OutgoingLink, chunk: Chunk, now: float) -> None:
        link.on_wire -= 1
        link.bytes_moved += chunk.nbytes
        link.chunks_moved += 1
        link.busy_s += now - link.busy_since
        link.busy_since = now
        self.totals[link.transport] = self.totals.get(link.transport, 0) + chunk.nbytes

    def _finish(self, record: Outgoing, now: float, tail_s: float) -> None:
        self._end(record, record.state(sent=True))
        self._news.add(
            Sent(
                record.handoff_id,
                record.epoch,
                record.link.transport,
                record.num_bytes,
                record.num_chunks,
                record.busy_s,
                tail_s,
            )
        )

    def is_cancelled(self, link: OutgoingLink, message: Cancel) -> None:
        with self._changing() as mail:
            if (record := self._match(link, message)) is not None:
                self._fail(mail, record, f"receiver: {message.reason}", tell=False, unwanted=True)

    def link_lost(self, link: OutgoingLink, reason: str) -> None:
        with self._changing() as mail:
            for key in [key for key, known in self._links.items() if known is link]:
                del self._links[key]
            if not link.released:
                self._leaving.add(link)
            for record in [r for r in self._live.values() if r.link is link]:
                self._fail(mail, record, f"link {link.name}: {reason}", tell=False)

    def link_released(self, link: OutgoingLink) -> None:
        """The link's threads are done with its slabs; the receiver may not be, see staging."""
        with self._lock:
            link.released = True
            self._leaving.discard(link)
            seqs = list(link.under_way)
        for seq in seqs:
            link.under_way[seq].slab.settle()
            self._free(link, seq)

    # -- called by the timekeeper, and at the end

    def expire(self, now: float) -> float:
        """Fail what is overdue; the next deadline."""
        with self._changing() as mail:
            for record in [r for r in self._live.values() if r.deadline <= now]:
                self._fail(mail, record, "sender: deadline passed")
            due = [r.deadline for r in self._live.values()]
            stalled = [link for link in self._links.values() if link.overdue_at <= now]
            due += [link.overdue_at for link in self._links.values() if link not in stalled]
        for link in stalled:
            link.break_off(f"the peer has taken nothing for {self.tuning.stall_timeout_s:g} s")
        return min(due, default=float("inf"))

    def close(self, join_until: float) -> None:
        with self._lock:
            self._closed = True
            links = [*self._links.values(), *self._leaving]
        for link in links:
            link.break_off("the port was closed")
        for link in links:
            link.join(max(0.0, join_until - time.monotonic()))
        self._gathering.close(join_until)

    def stats(self) -> list[LinkStats]:
        with self._lock:
            return [
                LinkStats(x.name, "out", x.transport, x.bytes_moved, x.chunks_moved, x.busy_s)
                for x in self._links.values()
            ]

    @property
    def num_open(self) -> int:
        return len(self._live)

    # -- under the lock

    def _match(self, link: OutgoingLink, message: Ready | Cancel) -> Outgoing | None:
        record = self._live.get(message.handoff_id)
        same = record is not None and record.link is link and record.epoch == message.epoch
        return record if same else None

    def _end(self, record: Outgoing, state: OutgoingState) -> None:
        record.ended = True
        del self._live[record.handoff_id]
        self._past.keep(record.handoff_id, state)

    def _drop(self, mail: Mail, record: Outgoing, reason: str) -> None:
        """End it and tell the receiver, without an event."""
        self._end(record, record.state(failed=reason))
        mail.append((record.link, Withdraw(record.handoff_id, record.epoch, short(reason))))

    def _fail(
        self,
        mail: Mail,
        record: Outgoing,
        reason: str,
        *,
        tell: bool = True,
        unwanted: bool = False,
    ) -> None:
        moved = record.cursor - (record.first_block or 0)
        failed = Failed(record.handoff_id, record.epoch, reason, moved, unwanted)
        self._news.add_failed(failed, outgoing=True)
        self._end(record, record.state(failed=reason))
        if tell:
            mail.append((record.link, Withdraw(record.handoff_id, record.epoch, short(reason))))

    def _free(self, link: OutgoingLink, seq: int) -> ChunkJob | None:
        with self._changing():
            job = link.under_way.pop(seq, None)
            if job is not None:
                job.slab.free()
                if self._short_of_room:
                    self._short_of_room = False
                    self._news.add_staging_freed()
        return job
