"""The guard: off when the control group wins, never on too little evidence."""

from hypothesis import given
from hypothesis import strategies as st

from services.global_sched.policy.guard import Guard, GuardSettings, GuardState, score


def feed(guard: Guard, number: int, cut: float, control: float) -> None:
    for _ in range(number):
        guard.observe("chat", cut, cut=True, control=False)
        guard.observe("chat", control, cut=False, control=True)


def test_a_class_in_which_control_wins_is_turned_off_and_probed_again() -> None:
    guard = Guard(GuardSettings(min_samples=10, probe_every=50))
    feed(guard, 9, cut=1.0, control=0.5)
    assert guard.unsplit_classes == frozenset()
    feed(guard, 1, cut=1.0, control=0.5)
    assert guard.unsplit_classes == {"chat"}
    feed(guard, 25, cut=1.0, control=0.5)
    assert guard.unsplit_classes == frozenset()


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), max_size=200))
def test_cuts_stay_on_while_they_are_no_worse(outcomes: list[tuple[float, bool]]) -> None:
    guard = Guard(GuardSettings(min_samples=1))
    for value, cut in outcomes:
        guard.observe("chat", value if cut else value + 1.0, cut=cut, control=not cut)
    assert guard.unsplit_classes == frozenset()


def test_score_counts_a_miss_more_than_any_met_slo() -> None:
    assert score(0.99, 1.0, 0.099, 0.1) < score(1.01, 1.0, 0.0, 0.1)


def test_what_it_holds_of_a_class_can_be_shown_also_while_the_class_is_off() -> None:
    guard = Guard(GuardSettings(min_samples=10))
    assert guard.state("chat") is None
    guard.observe("chat", 1.5, cut=True, control=False)
    assert guard.state("chat") == GuardState("chat", False, 1, 1.5, 0, None)
    feed(guard, 10, cut=1.5, control=0.5)
    state = guard.state("chat")
    assert state is not None and state.is_off and state.cut_score is None
