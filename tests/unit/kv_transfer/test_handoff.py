"""One handoff, step by step."""

import pytest

from services.kv_transfer.handoff import (
    CALLS_OFF,
    ENDINGS,
    Abort,
    Close,
    Command,
    Handoff,
    InstanceLost,
    Opened,
    Orphan,
    SideEvent,
    Start,
    Tick,
)
from shared.schemas.handoff import HandoffPhase, Side

OPENED = Opened("h", 3, "a", "b", 100, deadline_s=10.0, lease_s=5.0, now_s=0.0)


def say(handoff: Handoff, side: Side, phase: HandoffPhase, at: float = 1.0) -> list[Command]:
    return handoff.apply(SideEvent("h", 3, side, phase, at))


def closed(commands: list[Command]) -> Close:
    assert isinstance(commands[-1], Close)
    return commands[-1]


def test_both_sides_are_told_of_each_other() -> None:
    alpha, beta = Handoff(OPENED).start()
    assert isinstance(alpha, Start) and isinstance(beta, Start)
    assert (alpha.instance_id, alpha.peer_id) == ("a", "b")
    assert (beta.instance_id, beta.peer_id) == ("b", "a")


def test_the_hoped_for_course_ends_in_a_record_with_its_times_and_figures() -> None:
    handoff = Handoff(OPENED)
    course: list[tuple[Side, HandoffPhase]] = [
        ("alpha", "accepted"),
        ("beta", "held"),
        ("alpha", "first_chunk"),
        ("alpha", "sent_all"),
        ("beta", "complete"),
        ("beta", "adopted"),
    ]
    phases = []
    for at, (side, phase) in enumerate(course):
        event = SideEvent("h", 3, side, phase, float(at), num_bytes=at * 10)
        assert handoff.apply(event) == []
        phases.append(handoff.phase)
    assert phases == ["opened", "opened", "streaming", "streaming", "ready", "adopted"]
    record = closed(say(handoff, "alpha", "released", at=7.0))
    assert (record.outcome, record.num_bytes, record.orphans) == ("adopted", 50, ())
    assert (record.streaming_at_s, record.ready_at_s, record.adopted_at_s) == (2.0, 4.0, 5.0)
    assert record.total_s == 7.0


def test_alpha_may_be_done_before_beta_has_begun() -> None:
    handoff = Handoff(OPENED)
    assert say(handoff, "alpha", "released") == []
    assert say(handoff, "beta", "complete") == []
    assert closed(say(handoff, "beta", "adopted")).outcome == "adopted"


@pytest.mark.parametrize("side", ["alpha", "beta"])
@pytest.mark.parametrize("phase", CALLS_OFF)
def test_a_side_that_calls_off_has_the_other_told_once(side: Side, phase: HandoffPhase) -> None:
    if phase not in ENDINGS[side]:
        return
    handoff = Handoff(OPENED)
    other: Side = "beta" if side == "alpha" else "alpha"
    (abort,) = say(handoff, side, phase)
    assert isinstance(abort, Abort) and abort.side == other
    assert say(handoff, side, phase) == []
    assert closed(say(handoff, other, "cancelled")).outcome == CALLS_OFF[phase]


def test_what_alpha_says_after_completion_does_not_undo_it() -> None:
    handoff = Handoff(OPENED)
    say(handoff, "beta", "complete")
    assert say(handoff, "alpha", "failed") == []
    assert closed(say(handoff, "beta", "adopted")).outcome == "adopted"


def test_a_send_that_fails_after_alpha_freed_its_blocks_still_fails_the_handoff() -> None:
    handoff = Handoff(OPENED)
    say(handoff, "alpha", "released")
    (abort,) = say(handoff, "alpha", "failed")
    assert isinstance(abort, Abort) and abort.side == "beta"
    assert closed(say(handoff, "beta", "recomputed")).outcome == "failed"


def test_an_adoption_after_failure_counts_as_ending_only() -> None:
    handoff = Handoff(OPENED)
    handoff.apply(Tick(10.0))
    assert say(handoff, "beta", "adopted", at=10.1) == []
    assert closed(say(handoff, "alpha", "released", at=10.2)).outcome == "failed"


def test_the_deadline_stops_both_sides_and_the_lease_makes_orphans_of_the_silent() -> None:
    handoff = Handoff(OPENED)
    assert handoff.apply(Tick(9.9)) == [] and handoff.due_s == 10.0
    assert [type(c) for c in handoff.apply(Tick(10.0))] == [Abort, Abort]
    assert handoff.due_s == 15.0
    say(handoff, "beta", "recomputed", at=11.0)
    orphan, record = handoff.apply(Tick(15.0))
    assert isinstance(orphan, Orphan) and orphan.instance_id == "a"
    assert closed([record]).orphans == ("a",)


def test_a_deadline_does_not_stop_a_complete_handoff_and_the_lease_does() -> None:
    handoff = Handoff(OPENED)
    say(handoff, "alpha", "released")
    say(handoff, "beta", "complete")
    assert handoff.apply(Tick(10.0)) == []
    orphan, record = handoff.apply(Tick(15.0))
    assert isinstance(orphan, Orphan) and orphan.instance_id == "b"
    assert closed([record]).outcome == "failed"


def test_a_lost_alpha_matters_until_beta_is_complete() -> None:
    early, late = Handoff(OPENED), Handoff(OPENED)
    (abort,) = early.apply(InstanceLost("a", 1.0))
    assert isinstance(abort, Abort) and abort.side == "beta"
    say(late, "beta", "complete")
    assert late.apply(InstanceLost("a", 1.0)) == []
    assert closed(say(late, "beta", "adopted")).outcome == "adopted"


def test_losing_both_closes_without_orphans() -> None:
    handoff = Handoff(OPENED)
    assert len(handoff.apply(InstanceLost("b", 1.0))) == 1
    record = closed(handoff.apply(InstanceLost("a", 2.0)))
    assert (record.outcome, record.orphans) == ("failed", ())


def test_an_uninvolved_instance_may_be_lost() -> None:
    handoff = Handoff(OPENED)
    assert handoff.apply(InstanceLost("c", 1.0)) == [] and handoff.phase == "opened"


def test_another_epoch_and_anything_after_the_close_change_nothing() -> None:
    handoff = Handoff(OPENED)
    assert handoff.apply(SideEvent("h", 2, "beta", "failed", 1.0)) == []
    assert handoff.phase == "opened"
    say(handoff, "beta", "adopted")
    say(handoff, "alpha", "released")
    assert handoff.apply(Tick(99.0)) == [] and say(handoff, "beta", "failed") == []
