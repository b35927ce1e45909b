"""KV ports over real sockets, in one process and in two; every test on each transport.

``gloo`` stands in for NCCL: the same protocol, threads and bookkeeping, other memory.
"""

import dataclasses
import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import pytest
import torch
from torch.distributed import TCPStore

from services.kv_transfer.links import (
    Arriving,
    Completed,
    Failed,
    KvPort,
    LinkTuning,
    PortAddress,
    Readied,
    Sent,
)
from services.kv_transfer.links.device_link import DeviceTransport
from services.kv_transfer.links.pages import Fence, HostPages
from services.kv_transfer.links.pair import RECEIVER, SENDER
from tests.integration.link_peer import NUM_BLOCKS, NUM_LAYERS, make_layers

BLOCK_BYTES = 1024
BLOCK_ALL_LAYERS = NUM_LAYERS * BLOCK_BYTES
PATIENCE_S = 20.0
ROOT = Path(__file__).parents[2]


class HasId(Protocol):
    @property
    def handoff_id(self) -> str: ...


Event = TypeVar("Event", bound=HasId)


def note(box: dict[str, Event], events: list[Event]) -> None:
    for event in events:
        assert event.handoff_id not in box, "said twice"
        box[event.handoff_id] = event


class Worker:
    """A port, its cache, and all it has said; ``send`` is done by ``step`` as room allows."""

    def __init__(
        self, seed: int, news: threading.Event, transports: Sequence[str], **options: object
    ):
        self.block_bytes = int(options.pop("block_bytes", BLOCK_BYTES))  # type: ignore[call-overload]
        self.layers = make_layers(seed, self.block_bytes)
        self.before = [layer.clone() for layer in self.layers]
        settings: dict[str, object] = {
            "geometry": "geometry",
            "staging_bytes": NUM_LAYERS * self.block_bytes * 16,
            "transports": transports,
            "host_id": "this host",
            "tuning": LinkTuning(
                stall_timeout_s=2.0, connect_timeout_s=2.0, device_piece_bytes=4 * BLOCK_BYTES
            ),
        }
        self.port = KvPort(self.layers, wake=news.set, **{**settings, **options})  # type: ignore[arg-type]
        self.ready: dict[str, Readied] = {}
        self.sent: dict[str, Sent] = {}
        self.arriving: dict[str, Arriving] = {}
        self.complete: dict[str, Completed] = {}
        self.failed_out: dict[str, Failed] = {}
        self.failed_in: dict[str, Failed] = {}
        self.room_again = 0
        self._sending: dict[str, tuple[list[int], int]] = {}

    def poll(self) -> None:
        events = self.port.poll()
        note(self.ready, events.ready)
        note(self.sent, events.sent)
        note(self.arriving, events.arriving)
        note(self.complete, events.complete)
        note(self.failed_out, events.failed_outgoing)
        note(self.failed_in, events.failed_incoming)
        self.room_again += events.staging_freed

    def send(self, handoff_id: str, block_ids: list[int], chunk_blocks: int) -> None:
        self._sending[handoff_id] = (block_ids, chunk_blocks)

    def step(self) -> None:
        self.poll()
        for handoff_id, (block_ids, size) in list(self._sending.items()):
            if handoff_id in self.ready and self._stage(handoff_id, block_ids, size):
                del self._sending[handoff_id]

    def _stage(self, handoff_id: str, block_ids: list[int], size: int) -> bool:
        """The tail block goes again with the next chunk, as with a half-filled one."""
        while (state := self.port.outgoing(handoff_id)) is not None and not state.failed:
            wanted = state.first_block or 0
            start = max(wanted, state.cursor - 1)
            end = min(start + max(2, size), len(block_ids))
            last = end == len(block_ids)
            if not self.port.stage(handoff_id, start, block_ids[start:end], last):
                return False
            if last:
                return True
        return True

    def rows(self, block_ids: Sequence[int]) -> torch.Tensor:
        return torch.stack([layer[list(block_ids)] for layer in self.layers])

    def rows_before(self, block_ids: Sequence[int]) -> torch.Tensor:
        return torch.stack([layer[list(block_ids)] for layer in self.before])


class Pool:
    """Workers that are driven together by one test thread, as engines drive theirs."""

    def __init__(self, transports: Sequence[str]) -> None:
        self.transports = transports
        self.news = threading.Event()
        self.workers: list[Worker] = []

    def worker(self, **options: object) -> Worker:
        options.setdefault("transports", self.transports)
        worker = Worker(len(self.workers), self.news, **options)  # type: ignore[arg-type]
        self.workers.append(worker)
        return worker

    def until(self, done: Callable[[], object]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while True:
            self.news.clear()
            for worker in self.workers:
                worker.step()
            if done():
                return
            # Some states (staging drained, bytes counted) have no event: look again now and then.
            self.news.wait(0.02)
            assert time.monotonic() < give_up, "waited in vain"


OFFERED = {"shm": ["shm", "tcp"], "tcp": ["tcp"], "gloo": ["gloo", "tcp"]}
"""What a port offers so that the named transport is the one it takes."""


@pytest.fixture(params=["shm", "tcp", "gloo"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pool(transport: str) -> Iterator[Pool]:
    pool = Pool(OFFERED[transport])
    yield pool
    for worker in pool.workers:
        worker.port.close()


def open_both(a: Worker, b: Worker, ids: list[int], *, epoch: int = 1, first: int = 0) -> None:
    b.port.expect("h", epoch, first, ids[first:], 10.0)
    a.port.offer("h", epoch, len(ids), b.port.address, None, 10.0)


# -- what works


def test_chunks_with_a_repeated_tail_fill_the_blocks_exactly(pool: Pool, transport: str) -> None:
    a, b = pool.worker(), pool.worker()
    sources, targets = [9, 3, 40, 7, 21], [63, 0, 5, 6, 12]
    open_both(a, b, targets)
    pool.until(lambda: a.ready)
    assert a.port.stage("h", 0, sources[:3], False)
    assert a.port.stage("h", 2, sources[2:4], False)
    assert a.port.stage("h", 3, sources[3:], True)
    pool.until(lambda: a.sent and b.complete)
    assert torch.equal(b.rows(targets), a.rows(sources))
    untouched = [i for i in range(NUM_BLOCKS) if i not in targets]
    assert torch.equal(b.rows(untouched), b.rows_before(untouched))
    assert a.sent["h"].transport == b.complete["h"].transport == transport
    assert a.sent["h"].num_bytes == b.complete["h"].num_bytes == 7 * BLOCK_ALL_LAYERS
    assert b.arriving and not a.failed_out and not b.failed_in


def test_the_tail_is_taken_as_it_is_when_it_is_sent_again(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    open_both(a, b, [1, 2])
    pool.until(lambda: a.ready)
    assert a.port.stage("h", 0, [10, 11], False)
    for layer in a.layers:
        layer[11] = 77  # more tokens were computed into the tail block
    assert a.port.stage("h", 1, [11], True)
    pool.until(lambda: b.complete)
    assert torch.equal(b.rows([1, 2]), a.rows([10, 11])) and b.rows([2]).eq(77).all()


def test_blocks_may_be_reused_once_they_are_staged(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    open_both(a, b, [1, 2, 3])
    pool.until(lambda: a.ready)
    assert a.port.stage("h", 0, [4, 5, 6], True)
    for layer in a.layers:
        layer[4:7] = 0
    pool.until(lambda: b.complete)
    assert torch.equal(b.rows([1, 2, 3]), a.rows_before([4, 5, 6]))


def test_the_receiver_says_where_to_begin_and_its_first_blocks_stay(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    open_both(a, b, [1, 2, 3, 4], first=2)
    pool.until(lambda: a.ready)
    state = a.port.outgoing("h")
    assert state is not None and (state.first_block, state.cursor) == (2, 2)
    assert a.port.stage("h", 1, [11, 12, 13], True)  # a chunk may begin earlier
    pool.until(lambda: b.complete)
    assert torch.equal(b.rows([3, 4]), a.rows([12, 13]))
    assert torch.equal(b.rows([1, 2]), b.rows_before([1, 2]))


def test_an_offer_may_come_before_it_is_expected(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    a.port.offer("h", 1, 2, b.port.address, None, 10.0)
    a.send("h", [1, 2], 2)
    pool.until(lambda: b.port._receiver._early)
    assert not a.port.stage("h", 0, [1, 2], True)
    b.port.expect("h", 1, 0, [5, 6], 10.0)
    pool.until(lambda: a.sent and b.complete)
    assert torch.equal(b.rows([5, 6]), a.rows([1, 2]))


def test_repeated_commands_change_nothing(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    for _ in range(2):
        open_both(a, b, [1, 2])
    a.send("h", [3, 4], 2)
    pool.until(lambda: a.sent and b.complete)
    open_both(a, b, [1, 2])
    pool.until(lambda: not a.port.stats().staging_bytes_in_use)
    assert not a.failed_out and not b.failed_in and not a.port.stats().open_outgoing


def test_full_staging_refuses_and_tells_when_there_is_room(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    gate = Gate(b)
    ids = list(range(40))
    open_both(a, b, ids)
    pool.until(lambda: a.ready)
    assert a.port.stage("h", 0, ids[:14], False)
    assert not a.port.stage("h", 14, ids[14:28], False)
    assert a.port.stats().staging_bytes_in_use <= a.port.stats().staging_bytes
    gate.open()
    pool.until(lambda: a.room_again)
    assert a.port.stage("h", 14, ids[14:28], False)
    a.send("h", ids, 10)
    pool.until(lambda: a.sent and b.complete)
    assert torch.equal(b.rows(ids), a.rows(ids))
    assert a.port.stats().staging_bytes_in_use == 0


def test_fifty_handoffs_both_ways_at_once_are_exact(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    rng = random.Random(7)
    rounds = []
    for way, (sender, receiver) in enumerate(((a, b), (b, a))):
        # Each worker sends from its upper half and receives into its lower half.
        free = list(range(128))
        rng.shuffle(free)
        for i in range(25):
            n = rng.randint(1, 5)
            targets = [free.pop() for _ in range(n)]
            sources = [rng.randrange(128, 256) for _ in range(n)]
            rounds.append((f"{way}-{i}", sender, receiver, sources, targets))
    rng.shuffle(rounds)
    for name, sender, receiver, sources, targets in rounds:
        early = rng.random() < 0.5
        if early:
            sender.port.offer(name, 1, len(targets), receiver.port.address, None, 20.0)
        receiver.port.expect(name, 1, 0, targets, 20.0)
        if not early:
            sender.port.offer(name, 1, len(targets), receiver.port.address, None, 20.0)
        sender.send(name, sources, rng.randint(1, 4))
    pool.until(lambda: all(len(w.sent) == len(w.complete) == 25 for w in (a, b)))
    for _, sender, receiver, sources, targets in rounds:
        assert torch.equal(receiver.rows(targets), sender.rows(sources))
    stats = a.port.stats()
    assert {link.direction for link in stats.links} == {"in", "out"} and len(stats.links) == 2


def test_a_forced_transport_is_used(pool: Pool, transport: str) -> None:
    a, b = pool.worker(), pool.worker()
    b.port.expect("h", 1, 0, [1], 10.0)
    a.port.offer("h", 1, 1, b.port.address, "tcp", 10.0)
    a.send("h", [2], 1)
    pool.until(lambda: a.sent)
    assert a.sent["h"].transport == "tcp"


def test_shared_memory_out_of_reach_falls_back_to_tcp() -> None:
    pool = Pool(["shm", "tcp"])
    a, b = pool.worker(), pool.worker()
    address = msgspec.structs.replace(PortAddress.decode(b.port.address), unix_name="elsewhere")
    b.port.expect("h", 1, 0, [1], 10.0)
    a.port.offer("h", 1, 1, address.encode(), None, 10.0)
    a.send("h", [2], 1)
    pool.until(lambda: a.sent)
    assert a.sent["h"].transport == "tcp" and a.port.stats().fallbacks == 1
    for worker in pool.workers:
        worker.port.close()


@pytest.mark.parametrize("at", ["sender", "receiver"])
def test_a_device_link_that_cannot_be_built_falls_back_visibly(
    at: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    join = DeviceTransport._join

    def refuse(self: DeviceTransport, store: TCPStore, rank: int, *more: object) -> object:
        if rank == (SENDER if at == "sender" else RECEIVER):
            raise RuntimeError("not today")
        return join(self, store, rank, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(DeviceTransport, "_join", refuse)
    pool = Pool(["gloo", "shm", "tcp"])
    tuning = LinkTuning(build_timeout_s=3.0)
    a, b = pool.worker(tuning=tuning), pool.worker(tuning=tuning)
    open_both(a, b, [1, 2])
    a.send("h", [2, 3], 2)
    pool.until(lambda: a.sent and b.complete)
    assert torch.equal(b.rows([1, 2]), a.rows([2, 3]))
    assert a.sent["h"].transport == "shm" and a.port.stats().fallbacks == 1
    assert "gloo cannot be built" in caplog.text
    for worker in pool.workers:
        worker.port.close()


# -- what is refused


def test_another_geometry_is_refused_with_both_named(pool: Pool) -> None:
    a, b = pool.worker(geometry="bf16"), pool.worker(geometry="fp8")
    a.port.offer("h", 1, 1, b.port.address, None, 10.0)
    pool.until(lambda: a.failed_out)
    assert "KV geometry differs: fp8 here, bf16 at the sender" in a.failed_out["h"].reason


def test_a_restarted_worker_is_not_taken_for_the_old_one(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    address = msgspec.structs.replace(PortAddress.decode(b.port.address), port_id="former")
    a.port.offer("h", 1, 1, address.encode(), None, 10.0)
    pool.until(lambda: a.failed_out)
    assert "not former: it was restarted" in a.failed_out["h"].reason


def test_a_transport_that_cannot_be_is_an_event_not_an_exception(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker(host_id="another host")
    a.port.offer("h", 1, 1, b.port.address, "shm", 10.0)
    pool.until(lambda: a.failed_out)
    assert "'shm' cannot join" in a.failed_out["h"].reason


def test_differing_lengths_fail_both_sides(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    b.port.expect("h", 1, 0, [1, 2, 3], 10.0)
    a.port.offer("h", 1, 5, b.port.address, None, 10.0)
    pool.until(lambda: a.failed_out and b.failed_in)
    assert a.failed_out["h"].reason == "receiver: 5 blocks are offered, 3 expected"


@pytest.mark.parametrize(
    ("first", "ids", "last", "why"),
    [
        (1, [1, 2], False, "leaves a gap"),
        (0, [1, 2, 3, 4], True, "not within"),
        (0, [1, 2], True, "last chunk ends at block 2 of 3"),
        (0, [], False, "not within"),
    ],
)
def test_a_wrong_chunk_fails_its_handoff_on_both_sides(
    pool: Pool, first: int, ids: list[int], last: bool, why: str
) -> None:
    a, b = pool.worker(), pool.worker()
    open_both(a, b, [1, 2, 3])
    pool.until(lambda: a.ready)
    assert not a.port.stage("h", first, ids, last)
    pool.until(lambda: a.failed_out and b.failed_in)
    assert why in a.failed_out["h"].reason and why in b.failed_in["h"].reason


def test_a_chunk_larger_than_staging_fails_with_the_bound(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    ids = list(range(NUM_BLOCKS))
    open_both(a, b, ids)
    pool.until(lambda: a.ready)
    assert a.port.max_chunk_blocks < NUM_BLOCKS
    assert not a.port.stage("h", 0, ids, True)
    pool.until(lambda: a.failed_out)
    assert f"staging holds {a.port.max_chunk_blocks}" in a.failed_out["h"].reason


def test_an_older_epoch_is_refused_on_either_side(pool: Pool) -> None:
    a, b, c = pool.worker(), pool.worker(), pool.worker()
    open_both(a, b, [1, 2], epoch=5)
    pool.until(lambda: a.ready)
    a.port.offer("h", 4, 2, b.port.address, None, 10.0)
    b.port.expect("h", 4, 0, [3, 4], 10.0)
    c.port.offer("h", 4, 2, b.port.address, None, 10.0)
    pool.until(lambda: a.failed_out and b.failed_in and c.failed_out)
    assert a.failed_out["h"].epoch == b.failed_in["h"].epoch == 4
    a.send("h", [8, 9], 2)
    pool.until(lambda: a.sent and b.complete)
    assert torch.equal(b.rows([1, 2]), a.rows([8, 9]))


def test_a_later_epoch_takes_over_on_both_sides(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    open_both(a, b, [1, 2], epoch=1)
    pool.until(lambda: a.ready)
    assert a.port.stage("h", 0, [8], False)
    pool.until(lambda: b.arriving)
    a.ready.clear()
    b.arriving.clear()
    open_both(a, b, [3, 4], epoch=2)
    a.send("h", [10, 11], 1)
    pool.until(lambda: a.sent and b.complete)
    assert a.sent["h"].epoch == b.complete["h"].epoch == 2
    assert torch.equal(b.rows([3, 4]), a.rows([10, 11]))
    assert not a.failed_out


# -- cancelling


class Gate:
    """Holds a worker's scatter at the first span until it is opened."""

    def __init__(self, worker: Worker) -> None:
        self._inner = HostPages(worker.layers)
        self.num_layers, self.num_blocks = self._inner.num_layers, self._inner.num_blocks
        self.block_bytes, self.device = self._inner.block_bytes, self._inner.device
        self.reached = threading.Event()
        self._opened = threading.Event()
        worker.port._receiver.pages = self

    def open(self) -> None:
        self._opened.set()

    def gather(self, block_ids: Sequence[int], out: torch.Tensor, piece_bytes: int) -> list[Fence]:
        return self._inner.gather(block_ids, out, piece_bytes)

    def scatter(self, first_layer: int, block_ids: Sequence[int], rows: torch.Tensor) -> None:
        self.reached.set()
        assert self._opened.wait(PATIENCE_S)
        self._inner.scatter(first_layer, block_ids, rows)

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        return self._inner.host_buffer(nbytes)


@pytest.mark.parametrize("transport", ["shm", "tcp"], indirect=True)
def test_cancel_waits_for_the_span_being_written_and_for_nothing_more(pool: Pool) -> None:
    tuning = LinkTuning(piece_bytes=BLOCK_BYTES)
    a, b = pool.worker(), pool.worker(tuning=tuning)
    gate = Gate(b)
    open_both(a, b, [1, 2])
    pool.until(lambda: a.ready)
    assert a.port.stage("h", 0, [8, 9], True)
    assert gate.reached.wait(PATIENCE_S)
    cancelled = threading.Event()

    def cancel() -> None:
        b.port.cancel("h")
        cancelled.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    assert not cancelled.wait(0.05), "a span is being written"
    gate.open()
    assert cancelled.wait(PATIENCE_S)
    after = b.rows([1, 2])
    pool.until(lambda: a.failed_out and not a.port.stats().staging_bytes_in_use)
    assert torch.equal(b.rows([1, 2]), after)
    assert torch.equal(b.rows([2])[1:], b.rows_before([2])[1:]), "later spans went nowhere"
    assert a.failed_out["h"].reason == "receiver: cancelled" and not b.failed_in
    thread.join(5)


MOMENTS = ["before", "offered", "ready", "staged", "arriving", "all staged"]


def advance_to(moment: str, pool: Pool, a: Worker, b: Worker, expect_first: bool) -> None:
    at = MOMENTS.index(moment)
    if expect_first:
        b.port.expect("h", 1, 0, [1, 2, 3], 10.0)
    if at >= MOMENTS.index("offered"):
        a.port.offer("h", 1, 3, b.port.address, None, 10.0)
    if at >= MOMENTS.index("ready"):
        pool.until(lambda: a.ready)
    if at >= MOMENTS.index("staged"):
        assert a.port.stage("h", 0, [8], False)
    if at >= MOMENTS.index("arriving"):
        pool.until(lambda: b.arriving)
    if at >= MOMENTS.index("all staged"):
        assert a.port.stage("h", 0, [8, 9, 10], True)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_receiver_may_cancel_at_any_moment(pool: Pool, moment: str) -> None:
    a, b = pool.worker(), pool.worker()
    advance_to(moment, pool, a, b, expect_first=True)
    b.port.cancel("h", "no longer wanted")
    mark = 0xEE
    for layer in b.layers:
        layer[1:4] = mark  # the blocks belong to somebody else now
    b.complete.clear()
    if moment == "before":
        a.port.offer("h", 1, 3, b.port.address, None, 10.0)
    pool.until(lambda: a.failed_out or a.sent)
    pool.until(lambda: not a.port.stats().staging_bytes_in_use)
    assert b.rows([1, 2, 3]).eq(mark).all()
    assert not b.complete and not b.failed_in and not b.port.stats().open_incoming
    assert_still_works(pool, a, b)


@pytest.mark.parametrize("moment", MOMENTS[1:])
def test_the_sender_may_withdraw_at_any_moment(pool: Pool, moment: str) -> None:
    a, b = pool.worker(), pool.worker()
    advance_to(moment, pool, a, b, expect_first=True)
    a.port.withdraw("h", "ended early")
    a.sent.clear()
    pool.until(lambda: b.failed_in or b.complete)
    pool.until(lambda: not a.port.stats().staging_bytes_in_use)
    if moment != "all staged":  # there the last chunk may have been faster
        assert b.failed_in["h"].reason == "sender: ended early"
    assert not a.sent and not a.failed_out and not a.port.stats().open_outgoing
    assert_still_works(pool, a, b)


def test_a_withdrawal_before_it_was_expected_is_told_to_the_late_receiver(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    a.port.offer("h", 1, 1, b.port.address, None, 10.0)
    pool.until(lambda: b.port._receiver._early)
    a.port.withdraw("h", "ended early")
    pool.until(lambda: not b.port._receiver._early)
    b.port.expect("h", 1, 0, [1], 10.0)
    pool.until(lambda: b.failed_in)
    assert b.failed_in["h"].reason == "sender: ended early"


def test_an_early_offer_can_be_cancelled(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    a.port.offer("h", 1, 1, b.port.address, None, 10.0)
    pool.until(lambda: b.port._receiver._early)
    b.port.cancel("h", "prefix cache had it all")
    pool.until(lambda: a.failed_out)
    assert a.failed_out["h"].reason == "receiver: prefix cache had it all"


def assert_still_works(pool: Pool, a: Worker, b: Worker) -> None:
    b.port.expect("next", 1, 0, [30, 31], 10.0)
    a.port.offer("next", 1, 2, b.port.address, None, 10.0)
    a.send("next", [40, 41], 1)
    pool.until(lambda: "next" in a.sent and "next" in b.complete)
    assert torch.equal(b.rows([30, 31]), a.rows([40, 41]))


def test_random_cancels_and_withdrawals_leave_no_stray_write_and_no_staging(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker(tuning=LinkTuning(piece_bytes=BLOCK_BYTES))
    rng = random.Random(11)
    fates = [one_random_handoff(pool, a, b, f"h{i}", rng) for i in range(150)]
    assert {"cancel", "withdraw", "whole"} <= set(fates)
    stats = (a.port.stats(), b.port.stats())
    assert [s.open_outgoing + s.open_incoming for s in stats] == [0, 0]


def one_random_handoff(pool: Pool, a: Worker, b: Worker, name: str, rng: random.Random) -> str:
    """Disturbed or not after some steps; what became of it."""
    targets, sources = rng.sample(range(64), 6), rng.sample(range(64), 6)
    b.port.expect(name, 1, 0, targets, 20.0)
    a.port.offer(name, 1, 6, b.port.address, None, 20.0)
    a.send(name, sources, rng.randint(1, 6))
    for _ in range(rng.randint(0, 6)):
        pool.news.wait(0.01)
        pool.news.clear()
        a.step()
    fate = rng.choice(["cancel", "withdraw", "whole"])
    if fate == "cancel":
        b.port.cancel(name)
        for layer in b.layers:
            layer[targets] = 0xEE
        pool.until(lambda: ended(a, name))
    elif fate == "withdraw":
        a.port.withdraw(name, "why not")
    if fate != "cancel":
        pool.until(lambda: name in b.complete or name in b.failed_in)
    a._sending.pop(name, None)
    pool.until(lambda: not a.port.stats().staging_bytes_in_use)
    if fate == "cancel":
        assert b.rows(targets).eq(0xEE).all()
    elif name in b.complete:
        assert torch.equal(b.rows(targets), a.rows(sources))
    assert fate != "whole" or name in b.complete
    return fate


def ended(worker: Worker, name: str) -> bool:
    state = worker.port.outgoing(name)
    return state is not None and (state.sent or state.failed is not None)


# -- time


def test_a_receiver_that_waits_in_vain_fails_at_its_deadline(pool: Pool) -> None:
    b = pool.worker()
    b.port.expect("h", 1, 0, [1], 0.05)
    pool.until(lambda: b.failed_in)
    assert b.failed_in["h"].reason == "receiver: deadline passed"


def test_a_receivers_deadline_is_told_to_the_sender(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    b.port.expect("h", 1, 0, [1, 2], 0.2)
    a.port.offer("h", 1, 2, b.port.address, None, 30.0)
    pool.until(lambda: a.failed_out and b.failed_in)
    assert a.failed_out["h"].reason == "receiver: receiver: deadline passed"


def test_a_senders_deadline_is_told_to_the_receiver(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    b.port.expect("h", 1, 0, [1, 2], 30.0)
    a.port.offer("h", 1, 2, b.port.address, None, 0.2)
    pool.until(lambda: a.failed_out and b.failed_in)
    assert b.failed_in["h"].reason == "sender: sender: deadline passed"


def test_an_offer_nobody_expects_expires_and_its_sender_is_told(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker(tuning=LinkTuning(early_offer_ttl_s=0.05))
    a.port.offer("h", 1, 2, b.port.address, None, 30.0)
    pool.until(lambda: a.failed_out)
    assert a.failed_out["h"].reason == "receiver: not expected here in time"


def test_early_offers_are_bounded(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker(tuning=LinkTuning(early_offers=2))
    for name in "xyz":
        a.port.offer(name, 1, 2, b.port.address, None, 30.0)
    pool.until(lambda: a.failed_out)
    assert a.failed_out["z"].reason == "receiver: too many offers wait here"


def test_deadlines_in_any_order_are_each_kept(pool: Pool) -> None:
    b = pool.worker()
    for name, deadline_s in (("late", 0.2), ("soon", 0.02), ("never", 60.0), ("middle", 0.1)):
        b.port.expect(name, 1, 0, [1], deadline_s)
    pool.until(lambda: len(b.failed_in) == 3)
    assert list(b.failed_in) == ["soon", "middle", "late"]


# -- death


def test_closing_a_port_fails_everything_at_its_peer_and_a_new_one_is_dialled(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    open_both(a, b, [1, 2])
    c = pool.worker()
    c.port.offer("to b", 1, 2, b.port.address, None, 10.0)
    pool.until(lambda: a.ready and b.port._receiver._early)
    assert a.port.stage("h", 0, [3], False)
    b.port.close()
    pool.until(lambda: a.failed_out and c.failed_out)
    pool.until(lambda: not a.port.stats().staging_bytes_in_use)
    assert not a.port.stage("h", 1, [4], True)
    d = pool.worker()
    assert_still_works(pool, a, d)


def test_nobody_at_the_address_fails_the_offer(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    address = b.port.address
    b.port.close()
    a.port.offer("h", 1, 2, address, None, 10.0)
    pool.until(lambda: a.failed_out)
    assert "Connection refused" in a.failed_out["h"].reason


def test_a_closed_port_refuses_at_once(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    a.port.close()
    a.port.offer("h", 1, 2, b.port.address, None, 10.0)
    a.port.expect("h", 1, 0, [1], 10.0)
    pool.until(lambda: a.failed_out and a.failed_in)


def use_and_close(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    for here, there in ((a, b), (b, a)):
        there.port.expect("h", 1, 0, [1, 2], 10.0)
        here.port.offer("h", 1, 2, there.port.address, None, 10.0)
        here.send("h", [4, 5], 2)
    pool.until(lambda: a.complete and b.complete)
    a.port.offer("open", 1, 2, b.port.address, None, 10.0)
    a.port.close()
    b.port.close()


def test_nothing_is_left_after_close(transport: str) -> None:
    def held() -> tuple[int, int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text().count("dynaserve-kv")
        return threading.active_count(), len(os.listdir("/proc/self/fd")), maps

    shm_before = set(os.listdir("/dev/shm"))
    before = held()
    for _ in range(3):
        use_and_close(Pool(OFFERED[transport]))
    assert held() == before
    assert set(os.listdir("/dev/shm")) <= shm_before


class Peer:
    """link_peer.py in a process of its own."""

    def __init__(self, transport: str, block_bytes: int) -> None:
        transports = ",".join(OFFERED[transport])
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.integration.link_peer",
                "9",
                str(block_bytes),
                transports,
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self.hear()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, what: str, **arguments: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def peer(transport: str) -> Iterator[Callable[[int], Peer]]:
    peers: list[Peer] = []

    def start(block_bytes: int) -> Peer:
        peers.append(Peer(transport, block_bytes))
        return peers[-1]

    yield start
    for each in peers:
        if each.process.poll() is None:
            each.kill()


StartPeer = Callable[[int], Peer]


@pytest.mark.faults
def test_a_sender_killed_mid_transfer_fails_the_receiver_at_once(
    pool: Pool, peer: StartPeer
) -> None:
    b, sender = pool.worker(), peer(BLOCK_BYTES)
    shm = set(os.listdir("/dev/shm"))
    b.port.expect("h", 1, 0, [1, 2, 3], 60.0)
    sender.do(
        "offer",
        handoff_id="h",
        epoch=1,
        num_blocks=3,
        peer_address=b.port.address,
        transport=None,
        deadline_s=60.0,
    )
    assert sender.hear() == "ready"
    sender.do("stage", handoff_id="h", first_block=0, block_ids=[7, 8], last=False)
    pool.until(lambda: b.arriving)
    killed_at = time.monotonic()
    sender.kill()
    pool.until(lambda: b.failed_in)
    assert time.monotonic() - killed_at < 2.0
    assert b.failed_in["h"].num_blocks == 2
    theirs = torch.stack([layer[[7, 8]] for layer in make_layers(9, BLOCK_BYTES)])
    assert torch.equal(b.rows([1, 2]), theirs)
    pool.until(lambda: not b.port.stats().links)
    assert set(os.listdir("/dev/shm")) <= shm


@pytest.mark.faults
def test_a_receiver_killed_mid_transfer_frees_the_sender_and_its_successor_is_dialled(
    pool: Pool, peer: StartPeer
) -> None:
    a, receiver = pool.worker(), peer(BLOCK_BYTES)
    ids = list(range(12))
    receiver.do("expect", handoff_id="h", epoch=1, first_block=0, block_ids=ids, deadline_s=60.0)
    a.port.offer("h", 1, 12, receiver.address, None, 60.0)
    pool.until(lambda: a.ready)
    receiver.process.send_signal(signal.SIGSTOP)  # so that chunks are under way for sure
    assert a.port.stage("h", 0, ids[:6], False)
    assert a.port.stage("h", 6, ids[6:], True)
    receiver.kill()
    pool.until(lambda: a.failed_out and not a.port.stats().staging_bytes_in_use)
    assert not a.sent
    successor = peer(BLOCK_BYTES)
    successor.do("expect", handoff_id="h", epoch=2, first_block=0, block_ids=ids, deadline_s=60.0)
    a.ready.clear()
    a.port.offer("h", 2, 12, successor.address, None, 60.0)
    a.send("h", ids, 4)
    pool.until(lambda: a.sent)
    assert [successor.hear(), successor.hear()] == ["arriving", "complete"]


@pytest.mark.faults
def test_a_frozen_receiver_costs_no_more_than_the_deadline(pool: Pool, peer: StartPeer) -> None:
    a, receiver = pool.worker(), peer(BLOCK_BYTES)
    receiver.do("expect", handoff_id="h", epoch=1, first_block=0, block_ids=[1, 2], deadline_s=60.0)
    a.port.offer("h", 1, 2, receiver.address, None, 1.0)
    pool.until(lambda: a.ready)
    receiver.process.send_signal(signal.SIGSTOP)
    assert a.port.stage("h", 0, [1, 2], True)
    pool.until(lambda: a.failed_out)
    assert a.failed_out["h"].reason == "sender: deadline passed"
    receiver.process.send_signal(signal.SIGCONT)
    pool.until(lambda: not a.port.stats().staging_bytes_in_use)


@pytest.mark.faults
def test_a_peer_frozen_inside_a_payload_loses_the_link() -> None:
    block_bytes = 1 << 20
    pool, receiver = Pool(["tcp"]), Peer("tcp", block_bytes)
    a = pool.worker(block_bytes=block_bytes, tuning=LinkTuning(stall_timeout_s=0.3))
    ids = list(range(12))
    receiver.do("expect", handoff_id="h", epoch=1, first_block=0, block_ids=ids, deadline_s=60.0)
    a.port.offer("h", 1, 12, receiver.address, None, 60.0)
    pool.until(lambda: a.ready)
    receiver.process.send_signal(signal.SIGSTOP)
    assert a.port.stage("h", 0, ids, True)
    pool.until(lambda: a.failed_out and not a.port.stats().staging_bytes_in_use)
    assert "silent for 300 ms inside a message" in a.failed_out["h"].reason
    a.port.close()
    receiver.kill()


@pytest.mark.faults
def test_a_receiver_frozen_under_a_device_transfer_loses_the_link() -> None:
    pool, receiver = Pool(["gloo"]), Peer("gloo", BLOCK_BYTES)
    a = pool.worker(tuning=LinkTuning(stall_timeout_s=0.3))
    receiver.do("expect", handoff_id="h", epoch=1, first_block=0, block_ids=[1], deadline_s=60.0)
    a.port.offer("h", 1, 1, receiver.address, None, 60.0)
    pool.until(lambda: a.ready)
    receiver.process.send_signal(signal.SIGSTOP)
    assert a.port.stage("h", 0, [1], True)
    pool.until(lambda: a.failed_out and not a.port.stats().staging_bytes_in_use)
    assert "has taken nothing for 0.3 s" in a.failed_out["h"].reason
    a.port.close()
    receiver.kill()


def test_memory_given_up_while_it_was_copied_is_not_believed() -> None:
    """The sender has dropped the link and reused the memory; the receiver must not complete."""
    pool = Pool(["shm", "tcp"])
    a, b = pool.worker(), pool.worker()
    gate = Gate(b)
    open_both(a, b, [1, 2])
    pool.until(lambda: a.ready)
    assert a.port.stage("h", 0, [8, 9], True)
    assert gate.reached.wait(PATIENCE_S)
    (job,) = next(iter(a.port._sender._links.values())).under_way.values()
    job.slab.free()
    gate.open()
    pool.until(lambda: b.failed_in)
    assert "gave up the memory" in b.failed_in["h"].reason and not b.complete
    for worker in pool.workers:
        worker.port.close()


def test_states_are_plain_values(pool: Pool) -> None:
    a, b = pool.worker(), pool.worker()
    assert a.port.outgoing("h") is None
    open_both(a, b, [1])
    a.send("h", [2], 1)
    pool.until(lambda: a.sent)
    state = a.port.outgoing("h")
    assert state is not None
    assert dataclasses.asdict(state) == {
        "epoch": 1,
        "first_block": 0,
        "cursor": 1,
        "sent": True,
        "failed": None,
    }
