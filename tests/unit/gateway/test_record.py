"""What is measured of a request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.record import Timeline
from shared.schemas.request import Slo

SLO = Slo(ttft_s=1.0, tbt_s=0.1)


def timeline(*arrivals: tuple[int, float]) -> Timeline:
    made = Timeline(arrived_s=10.0)
    for count, at_s in arrivals:
        made.tokens(count, at_s)
    return made


def test_without_tokens_there_is_nothing_to_say_and_no_objective_is_met() -> None:
    empty = timeline((0, 10.1))
    assert (empty.ttft_s, empty.tpot_s, empty.tbt_p99_s) == (None, None, None)
    assert not empty.meets(SLO)


def test_a_single_token_has_a_first_token_time_alone() -> None:
    one = timeline((1, 10.5))
    assert one.ttft_s == pytest.approx(0.5)
    assert one.tpot_s is None
    assert one.meets(SLO)


def test_tokens_that_come_together_have_no_gap_between_them() -> None:
    made = timeline((1, 10.5), (3, 10.8))
    assert made.num_tokens == 4
    assert made.gaps_s == pytest.approx([0.3, 0.0, 0.0])
    assert made.tpot_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("arrivals", "met"),
    [
        (((1, 11.0), (1, 11.1)), True),
        (((1, 11.01), (1, 11.02)), False),
        (((1, 10.1), (1, 10.3)), False),
    ],
)
def test_both_objectives_have_to_hold(arrivals: tuple[tuple[int, float], ...], met: bool) -> None:
    assert timeline(*arrivals).meets(Slo(ttft_s=1.0, tbt_s=0.1001)) is met


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=300))
def test_at_most_one_gap_in_a_hundred_is_longer_than_the_p99(gaps: list[float]) -> None:
    made = Timeline(arrived_s=0.0)
    now_s = 1.0
    made.tokens(1, now_s)
    for gap in gaps:
        now_s += gap
        made.tokens(1, now_s)
    p99 = made.tbt_p99_s
    assert p99 is not None
    assert sum(g > p99 for g in made.gaps_s) <= 0.01 * len(gaps)
    assert p99 in made.gaps_s
