"""How far off predictions of the time to first token are."""

from hypothesis import given
from hypothesis import strategies as st

from services.global_sched.ttft_error import Correction, TtftError


def test_a_size_with_enough_first_tokens_has_its_own_low_quantile() -> None:
    error = TtftError(min_samples=4, quantile=0.1)
    for ratio in (1.0, 2.0, 3.0, 4.0):
        error.observe(1.5, ratio * 1.5)
    assert error.optimistic(1.6) == Correction(1.0, is_near=True)


def test_a_size_without_them_borrows_from_the_next_smaller_but_stays_hopeful() -> None:
    error = TtftError(min_samples=2)
    for _ in range(2):
        error.observe(0.1, 0.05)
        error.observe(0.001, 0.02)
    assert error.optimistic(10.0) == Correction(0.5, is_near=False)
    assert error.optimistic(0.02) == Correction(1.0, is_near=False)


def test_with_nothing_seen_there_is_no_correction() -> None:
    error = TtftError(min_samples=2)
    error.observe(1.0, 1.0)
    assert error.optimistic(1.0) is None
    assert error.optimistic(0.1) is None
    assert TtftError().quantile(0.5) is None


@given(st.lists(st.tuples(st.floats(0.0, 1e5), st.floats(0.0, 1e5)), max_size=300))
def test_any_first_tokens_leave_a_bounded_and_non_negative_correction(
    seen: list[tuple[float, float]],
) -> None:
    error = TtftError(window=8)
    for predicted_s, real_s in seen:
        error.observe(predicted_s, real_s)
    for predicted_s, _ in seen:
        known = error.optimistic(predicted_s)
        assert known is None or known.ratio >= 0.0
    assert all(len(each.ratios) <= 8 for each in error._bins)
