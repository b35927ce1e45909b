import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynaserve.bench.slo import SloClass, Slos, parse_slos
from shared.errors import InvalidRequest
from tests.unit.dynaserve.bench.made import observation


def test_a_request_in_time_meets_its_objectives() -> None:
    slo = SloClass(ttft_s=0.1, tbt_s=0.02)

    assert slo.is_met(observation(ttft_s=0.1, gaps_s=(0.02, 0.01)))


def test_either_objective_alone_can_be_missed() -> None:
    slo = SloClass(ttft_s=0.1, tbt_s=0.02)

    assert not slo.is_met(observation(ttft_s=0.11, gaps_s=(0.01,)))
    assert not slo.is_met(observation(ttft_s=0.05, gaps_s=(0.021,)))


def test_the_time_to_first_token_may_grow_with_the_prompt() -> None:
    slo = SloClass(ttft_s=0.1, ttft_s_per_token=0.001)

    assert slo.is_met(observation(ttft_s=0.19, prompt_tokens=100))
    assert not slo.is_met(observation(ttft_s=0.19, prompt_tokens=80))


@pytest.mark.parametrize("outcome", ["refused", "failed", "unfinished"])
def test_what_was_not_answered_is_a_miss_even_without_objectives(outcome: str) -> None:
    assert not SloClass().is_met(observation(outcome=outcome))  # type: ignore[arg-type]


def test_one_long_gap_in_a_hundred_is_allowed_and_two_are_not() -> None:
    slo = SloClass(tbt_s=0.05)

    assert slo.is_met(observation(gaps_s=(0.01,) * 99 + (1.0,)))
    assert not slo.is_met(observation(gaps_s=(0.01,) * 98 + (1.0, 1.0)))
    assert not slo.is_met(observation(gaps_s=(0.01,) * 98 + (1.0,)))


def test_classes_have_their_own_objectives_whatever_the_order_of_options() -> None:
    expected = Slos(
        SloClass(1.0, 0.0, 0.1), {"code": SloClass(1.0, 0.0, 0.05), "chat": SloClass(2.0, 0.0, 0.1)}
    )

    assert parse_slos(["1000", "chat=2000"], [], ["code=50", "100"]) == expected
    assert expected.of("code").tbt_s == 0.05
    assert expected.of("other").tbt_s == 0.1
    assert expected.tightest_tbt_s == 0.05


def test_no_option_is_no_objective() -> None:
    assert parse_slos([], [], []) == Slos()
    assert math.isinf(Slos().tightest_tbt_s)


@pytest.mark.parametrize("value", ["", "fast", "code=", "-1", "nan", "inf", "code=x"])
def test_what_is_no_objective_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="an objective is"):
        parse_slos([value], [], [])


@given(st.floats(0.001, 1.0), st.floats(0.0, 2.0), st.floats(0.0, 1.0))
def test_a_looser_objective_never_loses_a_request(
    bound_s: float, ttft_s: float, more_s: float
) -> None:
    seen = observation(ttft_s=ttft_s)

    assert SloClass(bound_s + more_s).is_met(seen) or not SloClass(bound_s).is_met(seen)
