"""Output-length prediction: prior, learning, the bound by max_tokens."""

from hypothesis import given
from hypothesis import strategies as st

from services.global_sched.length_predictor import LengthPredictor


def test_quantiles_follow_what_was_seen_in_the_class() -> None:
    predictor = LengthPredictor()
    for length in range(1, 401):
        predictor.observe("code", length)
    seen = predictor.predict("code", 10_000)
    assert abs(seen.p50 - 200) < 10
    assert seen.p10 < seen.p50 < seen.p90
    assert predictor.predict("chat", 10_000) != seen
    assert predictor.error["", "code"] > 0.0


@given(st.lists(st.integers(1, 100_000), max_size=80), st.integers(1, 500))
def test_a_prediction_never_exceeds_max_tokens(lengths: list[int], most: int) -> None:
    predictor = LengthPredictor()
    for length in lengths:
        predictor.observe("x", length)
    assert max(predictor.predict("x", most)) <= most
