"""Words for cuts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.cuts import reason_code, region


@given(st.integers(1, 1000), st.integers(1, 2000))
def test_a_region_follows_from_cut_and_prompt(num_prompt_tokens: int, cut: int) -> None:
    expected = {-1: "prompt", 0: "boundary", 1: "output"}
    sign = (cut > num_prompt_tokens) - (cut < num_prompt_tokens)
    assert region(cut, num_prompt_tokens) == expected[sign]
    assert region(None, num_prompt_tokens) == "none"


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("forced by the request", "forced"),
        ("control group", "control_group"),
        ("guard: cuts lost against the control group in this class", "guard"),
        ("cut is cheapest; not cut: no second instance", "obstacle"),
        ("cut is cheapest", "cheapest"),
        ("a cut would gain less than the predictor's error", "below_error"),
        ("whatever a policy of yours says", "policy"),
    ],
)
def test_a_reason_has_a_code_from_a_closed_set(reason: str, code: str) -> None:
    assert reason_code(reason) == code
