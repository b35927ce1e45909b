"""The connector's worker side: moves blocks through the KV port as the scheduler side orders.

One per rank, called once per engine step on the engine's thread; nothing here waits. What the
port's threads did in the meantime is taken in by ``poll``, turned into vLLM's answers (requests
that finished sending or receiving, blocks that did not load) and news for the scheduler side.
"""

import logging
import time
from dataclasses import dataclass, field

from services.kv_transfer.connector.step import (
    Expect,
    Filled,
    Offer,
    StepTransfers,
    Tally,
    WorkerNews,
)
from services.kv_transfer.links.port import KvPort

log = logging.getLogger("dynaserve.kv_connector")


@dataclass(slots=True)
class Outgoing:
    """Alpha's part of one handoff on this rank."""

    num_blocks: int | None = None
    block_ids: list[int] = field(default_factory=list)
    num_final: int = 0
    wanted_from: int | None = None
    """First block the receiver wants; None until it holds its own."""
    num_staged: int = 0
    held_request_id: str | None = None
    over: bool = False

    @property
    def all_staged(self) -> bool:
        return self.num_blocks is not None and self.num_staged >= self.num_blocks

    def fill(self, filled: Filled) -> None:
        if filled.restart:
            self.block_ids.clear()
        self.block_ids.extend(filled.block_ids)
        self.num_final = filled.num_final


@dataclass(slots=True)
class Incoming:
    """Beta's part of one handoff on this rank."""

    engine_request_id: str
    block_ids: list[int]
    admitted: bool = False
    complete: bool = False
    failed: bool = False
    cancelled: bool = False

    @property
    def arrived(self) -> bool:
        return self.complete and self.admitted and not (self.failed or self.cancelled)

    @property
    def answerable(self) -> bool:
        return self.cancelled or ((self.complete or self.failed) and self.admitted)


class WorkerSide:
    """Everything this rank sends and receives."""

    def __init__(self, port: KvPort, rank: int, max_piece_blocks: int) -> None:
        self._port = port
        self._rank = rank
        self._max_piece_blocks = max_piece_blocks
        self._outgoing: dict[str, Outgoing] = {}
        self._incoming: dict[str, Incoming] = {}
        self._bad_block_ids: set[int] = set()
        self._news = WorkerNews()
        self._staging_bytes_told = 0
        self._fallbacks_told = 0

    def take_orders(self, transfers: StepTransfers) -> None:
        """Before the forward pass, so that peers agree while it runs."""
        for offer in transfers.offers:
            self._offer(offer)
        for handoff_id, request_id in transfers.held.items():
            # Unknown here: it failed or was withdrawn before, so the blocks are free to go.
            outgoing = self._outgoing.setdefault(handoff_id, Outgoing(over=True))
            outgoing.held_request_id = request_id
        for handoff_id, reason in transfers.withdrawn.items():
            self._withdraw(handoff_id, reason)
        for expect in transfers.expects:
            self._expect(expect)
        for handoff_id in transfers.admitted:
            self.admit(handoff_id)
        for handoff_id in transfers.cancelled:
            self._cancel(handoff_id)
        for handoff_id in transfers.failed:
            self._port.cancel(handoff_id)
            if handoff_id in self._incoming:
                self._incoming[handoff_id].failed = True

    def admit(self, handoff_id: str) -> bool:
        """Its request may run once its KV is there. False: not expected here (yet)."""
        incoming = self._incoming.get(handoff_id)
        if incoming is not None:
            incoming.admitted = True
        return incoming is not None

    def take_arrived(self) -> tuple[set[str], WorkerNews]:
        """Engine request ids whose KV is whole and that may run, and the word of it: between steps.

        Of nothing else here: what is said of blocks that were read holds when a step is done.
        """
        self._poll()
        arrived = {
            handoff_id: incoming.engine_request_id
            for handoff_id, incoming in self._incoming.items()
            if incoming.arrived
        }
        for handoff_id in arrived:
            del self._incoming[handoff_id]
        return set(arrived.values()), self._news.take(arrived, "complete")

    def stage(self, filled_blocks: list[Filled]) -> None:
        """After the forward pass: hand over what has become final, as far as peers are ready."""
        for filled in filled_blocks:
            self._outgoing.setdefault(filled.handoff_id, Outgoing()).fill(filled)
        self._poll()
        for handoff_id, outgoing in self._outgoing.items():
            self._stage(handoff_id, outgoing)

    def take_finished(self) -> tuple[set[str], set[str]]:
        """Engine request ids whose blocks are (sent, received); failed loads count as received."""
        sent = {
            outgoing.held_request_id
            for outgoing in self._outgoing.values()
            if outgoing.held_request_id is not None and (outgoing.all_staged or outgoing.over)
        }
        answerable = {h: i for h, i in self._incoming.items() if i.answerable}
        for handoff_id, incoming in answerable.items():
            del self._incoming[handoff_id]
            if incoming.failed and not incoming.cancelled:
                self._bad_block_ids.update(incoming.block_ids)
        self._outgoing = {
            h: o
            for h, o in self._outgoing.items()
            if not (o.over and (o.held_request_id is None or o.held_request_id in sent))
        }
        for outgoing in self._outgoing.values():
            if outgoing.held_request_id in sent:
                outgoing.held_request_id = None
        return sent, {i.engine_request_id for i in answerable.values()}

    def take_bad_block_ids(self) -> set[int]:
        """Blocks that did not load, once."""
        bad, self._bad_block_ids = self._bad_block_ids, set()
        return bad

    def take_news(self) -> WorkerNews | None:
        """What happened since the last call; None when nothing did."""
        news, self._news = self._news, WorkerNews()
        stats = self._port.stats()
        staging_bytes = stats.staging_bytes_in_use
        news.fallbacks = stats.fallbacks - self._fallbacks_told
        if not (news.tallies or news.fallbacks) and staging_bytes == self._staging_bytes_told:
            return None
        self._fallbacks_told = stats.fallbacks
        self._staging_bytes_told = news.staging_bytes[self._rank] = staging_bytes
        return news

    def _offer(self, offer: Offer) -> None:
        outgoing = self._outgoing.setdefault(offer.handoff_id, Outgoing())
        outgoing.num_blocks = offer.num_blocks
        self._port.offer(
            offer.handoff_id,
            offer.epoch,
            offer.num_blocks,
            offer.peer_addresses[self._rank],
            offer.transport,
            _seconds_left(offer.deadline_s),
        )

    def _withdraw(self, handoff_id: str, reason: str) -> None:
        self._port.withdraw(handoff_id, reason)
        self._outgoing.setdefault(handoff_id, Outgoing()).over = True

    def _expect(self, expect: Expect) -> None:
        self._incoming[expect.handoff_id] = Incoming(
            expect.engine_request_id, expect.block_ids, expect.admitted
        )
        self._port.expect(
            expect.handoff_id,
            expect.epoch,
            expect.first_block,
            expect.block_ids,
            _seconds_left(expect.deadline_s),
        )

    def _cancel(self, handoff_id: str) -> None:
        self._port.cancel(handoff_id)
        if handoff_id in self._incoming:
            self._incoming[handoff_id].cancelled = True

    def _stage(self, handoff_id: str, outgoing: Outgoing) -> None:
        """Hand blocks that are final to the port, as far as the receiver and its memory allow."""
        if outgoing.over or outgoing.wanted_from is None or outgoing.num_blocks is None:
            return
        start = max(outgoing.num_staged, outgoing.wanted_from)
        while start < outgoing.num_final:
            stop = min(start + self._max_piece_blocks, outgoing.num_final)
            last = stop == outgoing.num_blocks
            if not self._port.stage(handoff_id, start, outgoing.block_ids[start:stop], last):
                return
            if start == outgoing.wanted_from:
                self._note(handoff_id, "first_chunk")
            outgoing.num_staged = start = stop
            if last:
                self._note(handoff_id, "staged")

    def _poll(self) -> None:
        events = self._port.poll()
        for ready in events.ready:
            if ready.handoff_id in self._outgoing:
                self._outgoing[ready.handoff_id].wanted_from = ready.first_block
        for sent in events.sent:
            self._note(sent.handoff_id, "sent", sent.num_bytes, sent.transfer_s, sent.transport)
            if sent.handoff_id in self._outgoing:
                self._outgoing[sent.handoff_id].over = True
        for failed in events.failed_outgoing:
            what = "unwanted" if failed.unwanted else "send_failed"
            self._note(failed.handoff_id, what, detail=failed.reason)
            if failed.handoff_id in self._outgoing:
                self._outgoing[failed.handoff_id].over = True
        for done in events.complete:
            self._note(done.handoff_id, "complete", done.num_bytes, done.transfer_s)
            if done.handoff_id in self._incoming:
                self._incoming[done.handoff_id].complete = True
        for failed in events.failed_incoming:
            self._note(failed.handoff_id, "receive_failed", detail=failed.reason)
            if failed.handoff_id in self._incoming:
                self._incoming[failed.handoff_id].failed = True

    def _note(
        self,
        handoff_id: str,
        what: str,
        num_bytes: int = 0,
        transfer_s: float = 0.0,
        detail: str = "",
    ) -> None:
        self._news.note(handoff_id, what, Tally(1, num_bytes, transfer_s, detail))


def _seconds_left(deadline_s: float) -> float:
    """Unix time -> from now; a deadline that has passed still gets its orderly failure."""
    return max(0.001, deadline_s - time.time())
