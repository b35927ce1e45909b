import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynaserve.bench.ramp import Ramp, RampStep, capacity_rps, misses_allowed, next_rate


def climb(ramp: Ramp, true_capacity: float) -> list[RampStep]:
    """A server that meets the goal exactly up to its capacity."""
    steps: list[RampStep] = []
    while (rate := next_rate(ramp, steps)) is not None:
        good = 1.0 if rate <= true_capacity else 0.2
        steps.append(RampStep(rate, rate, good, rate * good))
        assert len(steps) < 200
    return steps


@given(st.floats(0.2, 500.0), st.floats(1.1, 3.0), st.floats(0.02, 0.3))
def test_finds_the_capacity_within_its_precision(
    true_capacity: float, growth: float, precision: float
) -> None:
    ramp = Ramp(1.0, growth, precision=precision)
    found = capacity_rps(ramp, climb(ramp, true_capacity))

    assert found <= true_capacity
    assert found >= true_capacity * (1 - precision) * (1 - 1e-9)


def test_a_server_that_never_meets_the_goal_has_no_capacity_and_the_search_ends() -> None:
    ramp = Ramp(1.0)

    assert capacity_rps(ramp, climb(ramp, 0.0)) == 0.0


def test_a_server_without_end_is_tried_up_to_the_highest_rate() -> None:
    ramp = Ramp(1.0, growth=2.0, most_rps=10.0)
    steps = climb(ramp, 1e9)

    assert [step.rate_rps for step in steps] == [1.0, 2.0, 4.0, 8.0, 10.0]
    assert capacity_rps(ramp, steps) == 10.0


def test_a_step_cut_short_did_not_meet_the_goal() -> None:
    ramp = Ramp(1.0)
    steps = [RampStep(1.0, 1.0, 0.95, 0.9), RampStep(1.5, 1.5, 1.0, 1.5, cut_short=True)]

    assert capacity_rps(ramp, steps) == 1.0


def test_luck_above_a_rate_that_missed_does_not_count() -> None:
    ramp = Ramp(1.0)
    steps = [
        RampStep(1.0, 1.0, 1.0, 1.0),
        RampStep(2.0, 2.0, 0.5, 1.0),
        RampStep(3.0, 3.0, 1.0, 3.0),
    ]

    assert capacity_rps(ramp, steps) == 1.0


@given(st.integers(1, 10_000))
def test_one_more_miss_than_allowed_is_below_the_goal(requests: int) -> None:
    ramp = Ramp(1.0, goal=0.9)
    allowed = misses_allowed(ramp, requests)

    assert (requests - allowed) / requests >= 0.9 - 1e-9
    assert (requests - allowed - 1) / requests < 0.9


@pytest.mark.parametrize(
    "wrong", [{"start_rps": 0.0}, {"growth": 1.0}, {"precision": 0.0}, {"precision": 1.0}]
)
def test_a_ramp_that_cannot_climb_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a ramp"):
        Ramp(**{"start_rps": 1.0, **wrong})
