"""The receiving half of a port: what becomes of each incoming handoff."""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.kv_transfer.links.events import Arriving, Completed, Failed, News
from services.kv_transfer.links.frames import (
    Ack,
    Cancel,
    Chunk,
    Hello,
    Offer,
    Ready,
    Withdraw,
    short,
)
from services.kv_transfer.links.half import Half, LinkStats, Mail, Memory
from services.kv_transfer.links.incoming_link import Incoming, IncomingLink
from services.kv_transfer.links.pages import KvPages
from services.kv_transfer.links.staging import Arena
from services.kv_transfer.links.transports import TRANSPORTS
from services.kv_transfer.links.tuning import LinkTuning


@dataclass(frozen=True)
class EarlyOffer:
    """Offered and not expected yet; kept for a while."""

    link: IncomingLink
    offer: Offer
    deadline: float


@dataclass(frozen=True)
class Past:
    """``unheard``: why it ended before it was expected, which the caller has not been told."""

    epoch: int
    unheard: str | None = None


class Receiver(Half):
    """See the methods of the same names on KvPort."""

    def __init__(
        self,
        pages: KvPages,
        inbox: Arena | None,
        port_id: str,
        geometry: str,
        news: News,
        tuning: LinkTuning,
        kick: Callable[[float], None],
    ) -> None:
        super().__init__(news, tuning, kick)
        self.pages = pages
        self.inbox = inbox
        self.totals: dict[str, int] = {}  # bytes received, by transport
        self._port_id = port_id
        self._geometry = geometry
        self._live: dict[str, Incoming] = {}
        self._early: dict[str, EarlyOffer] = {}
        self._past: Memory[Past] = Memory(tuning.remembered_handoffs)
        self._links: set[IncomingLink] = set()
        self._closed = False

    # -- called by the engine's thread

    def expect(
        self,
        handoff_id: str,
        epoch: int,
        first_block: int,
        block_ids: Sequence[int],
        deadline_s: float,
    ) -> None:
        if not block_ids or first_block < 0:
            raise ValueError(f"handoff {handoff_id}: blocks {list(block_ids)} from {first_block}")
        if min(block_ids) < 0 or max(block_ids) >= self.pages.num_blocks:
            raise ValueError(f"handoff {handoff_id}: block ids beyond {self.pages.num_blocks}")
        deadline = time.monotonic() + deadline_s
        record = Incoming(handoff_id, epoch, first_block, list(block_ids), deadline)
        with self._changing() as mail:
            replaced = self._live.get(handoff_id)
            if not self._admit(mail, record):
                return
            early = self._early.pop(handoff_id, None)
            if early is not None:
                self._pair(mail, record, early.link, early.offer)
        if replaced is not None and replaced.ended:
            replaced.wait_for_writer()
        self._kick(deadline)

    def _admit(self, mail: Mail, record: Incoming) -> bool:
        """Take it up unless it is repeated or older than what is known."""
        live, past = self._live.get(record.handoff_id), self._past.get(record.handoff_id)
        early = self._early.get(record.handoff_id)
        offered = early.offer.epoch if early else -1
        known = max(live.epoch if live else -1, past.epoch if past else -1)
        if self._closed:
            self._report(record, "the port is closed")
        elif record.epoch < max(known, offered):
            self._report(record, f"epoch {record.epoch} is older than {max(known, offered)}")
        elif record.epoch == known:
            if past is not None and past.unheard is not None and live is None:
                self._report(record, past.unheard)
                self._past.keep(record.handoff_id, Past(past.epoch))
        else:
            if live is not None:
                self._end(mail, live, f"superseded by epoch {record.epoch}")
            if early is not None and offered < record.epoch:
                self._refuse(mail, self._early.pop(record.handoff_id), "epoch is older")
            self._live[record.handoff_id] = record
            return True
        return False

    def _pair(self, mail: Mail, record: Incoming, link: IncomingLink, offer: Offer) -> None:
        """Both sides are known: ask for the blocks."""
        if offer.num_blocks != record.end_block:
            reason = f"{offer.num_blocks} blocks are offered, {record.end_block} expected"
            record.link = link
            self._report(record, reason)
            self._end(mail, record, reason)
            return
        record.link = link
        mail.append((link, Ready(record.handoff_id, record.epoch, record.first_block)))

    def cancel(self, handoff_id: str, reason: str) -> None:
        with self._changing() as mail:
            record = self._live.get(handoff_id)
            if record is not None:
                self._end(mail, record, reason)
            elif (early := self._early.pop(handoff_id, None)) is not None:
                self._refuse(mail, early, reason)
            self._news.forget(handoff_id, outgoing=False)
        if record is not None:
            record.wait_for_writer()

    # -- called by the listener and the link's threads

    def accept(self, sock: socket.socket, transport: str) -> None:
        link = IncomingLink(self, sock, transport, self._tuning)
        with self._lock:
            if self._closed or len(self._links) >= self._tuning.incoming_links:
                sock.close()
                return
            self._links.add(link)
        link.start()

    def what_is_wrong_with(self, hello: Hello, accepted_over: str) -> str | None:
        if hello.target_id != self._port_id:
            return f"the worker here is {self._port_id}, not {hello.target_id}: it was restarted"
        if hello.geometry != self._geometry:
            return f"KV geometry differs: {self._geometry} here, {hello.geometry} at the sender"
        transport = TRANSPORTS.get(hello.transport)
        if transport is None or transport.listens_on != accepted_over:
            return f"transport {hello.transport!r} on a {accepted_over} socket"
        if transport.memory == "device" and self.inbox is None:
            return f"transport {hello.transport!r} is not offered here"
        return None

    def is_offered(self, link: IncomingLink, offer: Offer) -> None:
        now = time.monotonic()
        deadline = now + min(offer.deadline_s, self._tuning.early_offer_ttl_s)
        early = EarlyOffer(link, offer, deadline)
        with self._changing() as mail:
            live, past = self._live.get(offer.handoff_id), self._past.get(offer.handoff_id)
            if past is not None and offer.epoch <= past.epoch:
                self._refuse(mail, early, "the handoff is over here", remember=False)
            elif live is not None and offer.epoch < live.epoch:
                self._refuse(mail, early, "epoch is older", remember=False)
            elif live is not None and offer.epoch == live.epoch:
                if live.link is None:
                    self._pair(mail, live, link, offer)
            elif len(self._early) >= self._tuning.early_offers:
                self._refuse(mail, early, "too many offers wait here")
            else:
                self._keep_early(mail, early, live)
        self._kick(deadline)

    def _keep_early(self, mail: Mail, early: EarlyOffer, older: Incoming | None) -> None:
        if older is not None:
            self._fail(mail, older, f"superseded by epoch {early.offer.epoch}")
        before = self._early.get(early.offer.handoff_id)
        if before is None or before.offer.epoch < early.offer.epoch:
            self._early[early.offer.handoff_id] = early
        if before is not None and before.offer.epoch != early.offer.epoch:
            loser = min(before, early, key=lambda e: e.offer.epoch)
            self._refuse(mail, loser, "epoch is older", remember=False)

    def is_withdrawn(self, link: IncomingLink, message: Withdraw) -> None:
        reason = f"sender: {message.reason}"
        with self._changing() as mail:
            record = self._live.get(message.handoff_id)
            early = self._early.get(message.handoff_id)
            if record is not None and record.link is link and record.epoch == message.epoch:
                self._fail(mail, record, reason, tell=False)
            elif early is not None and early.link is link and early.offer.epoch == message.epoch:
                del self._early[message.handoff_id]
                self._past.keep(message.handoff_id, Past(message.epoch, reason))

    def record_of(self, link: IncomingLink, chunk: Chunk) -> Incoming | None:
        """Whose chunk it is; None: nobody's (any more), drain it."""
        with self._changing() as mail:
            record = self._live.get(chunk.handoff_id)
            if record is None or record.epoch != chunk.epoch or record.link is not link:
                gone = Cancel(chunk.handoff_id, chunk.epoch, "not expected here")
                mail.append((link, gone))
                return None
            if chunk.first_block < 0 or chunk.first_block + chunk.num_blocks > record.end_block:
                self._fail(mail, record, f"a chunk reaches beyond block {record.end_block}")
                return None
            return record

    def has_landed(
        self, link: IncomingLink, record: Incoming | None, chunk: Chunk, took_s: float
    ) -> None:
        """The chunk is in its blocks or was drained; either way the sender gets its memory back."""
        with self._changing() as mail:
            total = self.totals.get(link.transport, 0)
            self.totals[link.transport] = total + chunk.nbytes
            if record is not None and not record.ended:
                self._advance(mail, record, chunk, took_s)
            mail.append((link, Ack(chunk.seq)))

    def _advance(self, mail: Mail, record: Incoming, chunk: Chunk, took_s: float) -> None:
        wait_s = time.monotonic() - record.expected_at
        if record.num_chunks == 0:
            self._news.add(Arriving(record.handoff_id, record.epoch, wait_s))
        record.fill(chunk)
        record.num_chunks += 1
        record.num_bytes += chunk.nbytes
        record.busy_s += took_s
        if chunk.last and record.num_missing:
            self._fail(mail, record, f"{record.num_missing} blocks missing after the last chunk")
        elif chunk.last:
            self._complete(record, wait_s)

    def _complete(self, record: Incoming, wait_s: float) -> None:
        assert record.link is not None
        done = Completed(
            record.handoff_id,
            record.epoch,
            record.link.transport,
            record.num_bytes,
            record.num_chunks,
            record.busy_s,
            wait_s,
        )
        self._retire(record)
        self._news.add(done)

    def link_lost(self, link: IncomingLink, reason: str) -> None:
        why = f"link {link.name}: {reason}"
        with self._changing() as mail:
            for record in [r for r in self._live.values() if r.link is link]:
                self._fail(mail, record, why, tell=False)
            for early in [e for e in self._early.values() if e.link is link]:
                del self._early[early.offer.handoff_id]
                self._past.keep(early.offer.handoff_id, Past(early.offer.epoch, why))

    def link_released(self, link: IncomingLink) -> None:
        with self._lock:
            self._links.discard(link)

    # -- called by the timekeeper, and at the end

    def expire(self, now: float) -> float:
        """Fail what is overdue; the next deadline."""
        with self._changing() as mail:
            for record in [r for r in self._live.values() if r.deadline <= now]:
                self._fail(mail, record, "receiver: deadline passed")
            for early in [e for e in self._early.values() if e.deadline <= now]:
                del self._early[early.offer.handoff_id]
                self._refuse(mail, early, "not expected here in time")
            due = [r.deadline for r in self._live.values()]
            due += [e.deadline for e in self._early.values()]
            return min(due, default=float("inf"))

    def close(self, join_until: float) -> None:
        with self._lock:
            self._closed = True
            links = list(self._links)
        for link in links:
            link.break_off("the port was closed")
        for link in links:
            link.join(max(0.0, join_until - time.monotonic()))

    def stats(self) -> list[LinkStats]:
        with self._lock:
            return [
                LinkStats(x.name, "in", x.transport, x.bytes_moved, x.chunks_moved, x.busy_s)
                for x in self._links
            ]

    @property
    def num_open(self) -> int:
        return len(self._live)

    # -- under the lock

    def _retire(self, record: Incoming) -> None:
        record.ended = True
        if self._live.get(record.handoff_id) is record:
            del self._live[record.handoff_id]
        self._past.keep(record.handoff_id, Past(record.epoch))

    def _end(self, mail: Mail, record: Incoming, reason: str, *, tell: bool = True) -> None:
        self._retire(record)
        if tell and record.link is not None:
            cancel = Cancel(record.handoff_id, record.epoch, short(reason))
            mail.append((record.link, cancel))

    def _report(self, record: Incoming, reason: str) -> None:
        filled = len(record.block_ids) - record.num_missing
        failed = Failed(record.handoff_id, record.epoch, reason, filled)
        self._news.add_failed(failed, outgoing=False)

    def _fail(self, mail: Mail, record: Incoming, reason: str, *, tell: bool = True) -> None:
        self._report(record, reason)
        self._end(mail, record, reason, tell=tell)

    def _refuse(self, mail: Mail, early: EarlyOffer, reason: str, *, remember: bool = True) -> None:
        offer = early.offer
        mail.append((early.link, Cancel(offer.handoff_id, offer.epoch, reason)))
        if remember:
            self._past.keep(offer.handoff_id, Past(offer.epoch, reason))
