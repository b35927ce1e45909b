"""Many handoffs: bounds, timers, and any interleaving of what can happen."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.kv_transfer.book import HandoffBook
from services.kv_transfer.handoff import (
    ENDINGS,
    Abort,
    Close,
    Command,
    InstanceLost,
    Opened,
    Orphan,
    SideEvent,
    Start,
    Tick,
)
from shared.errors import BookFull
from shared.schemas.handoff import HandoffPhase, Side

INSTANCES = ["i0", "i1", "i2"]
ALPHA: list[HandoffPhase] = [
    "accepted",
    "first_chunk",
    "sent_all",
    "released",
    "ended",
    "cancelled",
    "failed",
]
BETA: list[HandoffPhase] = [
    "accepted",
    "held",
    "first_chunk",
    "complete",
    "adopted",
    "not_needed",
    "recomputed",
    "cancelled",
    "failed",
]


def opened(handoff_id: str, epoch: int = 1, deadline_s: float = 10.0) -> Opened:
    return Opened(handoff_id, epoch, "i0", "i1", 10, deadline_s, lease_s=5.0, now_s=0.0)


def test_the_bound_is_refused_with_its_figure_and_holds_again_after_a_close() -> None:
    book = HandoffBook(max_open=1)
    book.apply(opened("x"))
    with pytest.raises(BookFull, match="bound is 1"):
        book.apply(opened("y"))
    book.apply(SideEvent("x", 1, "alpha", "released", 1.0))
    book.apply(SideEvent("x", 1, "beta", "adopted", 1.0))
    assert len(book) == 0
    assert [type(c) for c in book.apply(opened("y"))] == [Start, Start]


def test_a_repeated_opening_is_ignored_even_after_the_close() -> None:
    book = HandoffBook(max_open=4)
    book.apply(opened("x"))
    assert book.apply(opened("x")) == []
    book.apply(InstanceLost("i0", 1.0))
    book.apply(InstanceLost("i1", 1.0))
    assert book.apply(opened("x")) == [] and book.ignored == 2 and len(book) == 0


def test_a_later_epoch_calls_the_earlier_off_and_both_end_by_themselves() -> None:
    book = HandoffBook(max_open=4)
    book.apply(opened("x", 1))
    commands = book.apply(opened("x", 2))
    assert [(type(c), c.epoch) for c in commands] == [(Abort, 1)] * 2 + [(Start, 2)] * 2
    assert len(book) == 2
    book.apply(SideEvent("x", 1, "alpha", "cancelled", 1.0))
    (close,) = book.apply(SideEvent("x", 1, "beta", "cancelled", 1.0))
    assert isinstance(close, Close) and close.epoch == 1 and book.get("x", 2) is not None


def test_the_next_deadline_is_that_of_the_earliest_open_handoff() -> None:
    book = HandoffBook(max_open=4)
    assert book.next_deadline() is None
    book.apply(opened("late", deadline_s=20.0))
    book.apply(opened("soon", deadline_s=10.0))
    assert book.next_deadline() == 10.0
    book.apply(SideEvent("soon", 1, "beta", "complete", 1.0))
    assert book.next_deadline() == 15.0
    book.apply(SideEvent("soon", 1, "beta", "adopted", 1.0))
    book.apply(SideEvent("soon", 1, "alpha", "released", 1.0))
    assert book.next_deadline() == 20.0


def test_only_the_newest_ids_are_remembered() -> None:
    book = HandoffBook(max_open=1, remember=2)
    for name in ("x", "y", "z"):
        book.apply(opened(name))
        book.apply(InstanceLost("i0", 1.0))
        book.apply(InstanceLost("i1", 1.0))
    assert book.apply(opened("z")) == []
    assert len(book.apply(opened("x"))) == 2


def test_events_of_nobody_are_counted() -> None:
    book = HandoffBook(max_open=1)
    assert book.apply(SideEvent("?", 1, "alpha", "released", 1.0)) == []
    assert book.apply(InstanceLost("?", 1.0)) == []
    assert book.ignored == 1


class AnyOrder(RuleBasedStateMachine):
    """Drives a book with everything that may come, and keeps an account of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.book = HandoffBook(max_open=4)
        self.known: dict[tuple[str, int], Opened] = {}
        self.confirmed: set[tuple[str, int, Side]] = set()
        self.gone: set[tuple[str, int, Side]] = set()
        self.aborted: set[tuple[str, int, Side]] = set()
        self.orphaned: set[tuple[str, int, Side]] = set()
        self.closed: dict[tuple[str, int], Close] = {}
        self.called_off: set[tuple[str, int]] = set()

    def take(self, commands: list[Command]) -> None:
        for command in commands:
            key = (command.handoff_id, command.epoch)
            assert key in self.known
            assert key not in self.closed, "a command after Close"
            match command:
                case Abort(side=side):
                    self.called_off.add(key)
                    assert (*key, side) not in self.aborted, "told twice"
                    assert (*key, side) not in self.confirmed | self.gone, "told needlessly"
                    self.aborted.add((*key, side))
                case Orphan(side=side):
                    assert (*key, side) not in self.confirmed | self.gone
                    assert self.now >= self.known[key].deadline_s + self.known[key].lease_s
                    self.orphaned.add((*key, side))
                case Close():
                    self.check_close(key, command)

    def check_close(self, key: tuple[str, int], close: Close) -> None:
        self.closed[key] = close
        over = self.confirmed | self.gone | self.orphaned
        assert {(*key, "alpha"), (*key, "beta")} <= over, "closed before both sides ended"
        orphans = [s for s in ("alpha", "beta") if (*key, s) in self.orphaned]
        assert len(close.orphans) == len(orphans)
        if close.outcome == "adopted":
            assert key not in self.called_off, "adopted after it was called off"
            assert (*key, "beta") in self.confirmed
        else:
            assert close.reason and close.adopted_at_s is None

    @rule(
        handoff=st.sampled_from("xyz"),
        epoch=st.integers(1, 3),
        ends=st.permutations(INSTANCES),
        deadline=st.floats(0, 20),
        lease=st.floats(0.5, 10),
    )
    def open(
        self, handoff: str, epoch: int, ends: list[str], deadline: float, lease: float
    ) -> None:
        event = Opened(
            handoff, epoch, ends[0], ends[1], 8, self.now + deadline, lease, now_s=self.now
        )
        newest = max((e for h, e in self.known if h == handoff), default=0)
        if len(self.book) >= 4 and epoch > newest:
            with pytest.raises(BookFull):
                self.book.apply(event)
            return
        if epoch > newest:
            self.known[handoff, epoch] = event
        commands = self.book.apply(event)
        assert bool(commands) == (epoch > newest)
        self.take(commands)

    @rule(
        handoff=st.sampled_from("xyz"),
        epoch=st.integers(1, 3),
        said=st.sampled_from(
            [("alpha", p) for p in ALPHA] + [("beta", p) for p in BETA] * 2,
        ),
        times=st.integers(1, 2),
    )
    def hear(self, handoff: str, epoch: int, said: tuple[Side, HandoffPhase], times: int) -> None:
        side, phase = said
        for _ in range(times):
            if self.book.get(handoff, epoch) and phase in ENDINGS[side]:
                self.confirmed.add((handoff, epoch, side))
            self.take(self.book.apply(SideEvent(handoff, epoch, side, phase, self.now)))

    @rule(instance=st.sampled_from(INSTANCES))
    def lose(self, instance: str) -> None:
        for key, o in self.known.items():
            if self.book.get(*key):
                self.gone |= {(*key, "alpha")} if o.alpha_id == instance else set()
                self.gone |= {(*key, "beta")} if o.beta_id == instance else set()
        self.take(self.book.apply(InstanceLost(instance, self.now)))

    @rule(step=st.floats(0.01, 8))
    def tick(self, step: float) -> None:
        self.now += step
        self.take(self.book.apply(Tick(self.now)))

    @precondition(lambda self: self.book.next_deadline() is not None)
    @rule()
    def tick_at_the_next_deadline(self) -> None:
        due = self.book.next_deadline()
        assert due is not None
        before = {key: h.phase for key in self.known if (h := self.book.get(*key))}
        self.now = max(self.now, due)
        self.take(self.book.apply(Tick(self.now)))
        after = {key: h.phase for key in self.known if (h := self.book.get(*key))}
        assert before != after, "the timer woke up for nothing"

    @invariant()
    def a_handoff_called_off_has_every_side_told_or_over(self) -> None:
        for key in self.called_off - set(self.closed):
            for side in ("alpha", "beta"):
                over = self.confirmed | self.gone | self.orphaned | self.aborted
                assert (*key, side) in over

    @invariant()
    def open_and_closed_are_all_there_are(self) -> None:
        assert len(self.book) == len(self.known) - len(self.closed)

    def teardown(self) -> None:
        """Whatever happened, the leases end it."""
        self.now += 1000.0
        self.take(self.book.apply(Tick(self.now)))
        assert set(self.closed) == set(self.known)
        assert len(self.book) == 0 and self.book.next_deadline() is None
        assert not self.book._at and not self.book._due


AnyOrder.TestCase.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
