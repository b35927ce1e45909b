"""A part that ended is started again: soon, and later while it keeps ending at once."""

from hypothesis import given
from hypothesis import strategies as st

from dynaserve.local_pool.restarts import FIRST_S, LONGEST_S, QUICK_S, Restarts


def test_the_first_end_costs_little_and_each_quick_one_twice_the_last() -> None:
    restarts = Restarts()
    assert [restarts.after_s(5.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_part_that_lived_long_starts_soon_again() -> None:
    restarts = Restarts()
    for _ in range(5):
        restarts.after_s(5.0)
    assert restarts.after_s(QUICK_S + 1.0) == FIRST_S


@given(st.lists(st.floats(0.0, 100.0)))
def test_no_wait_is_out_of_bounds(lives_s: list[float]) -> None:
    restarts = Restarts()
    assert all(FIRST_S <= restarts.after_s(lived_s) <= LONGEST_S for lived_s in lives_s)
