"""Agreement of outputs: what counts is the share before the first difference."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu_suite.noise import agreement, compared

OUTPUT = st.lists(st.integers(0, 9), min_size=1, max_size=20)


def test_only_tokens_before_the_first_difference_agree() -> None:
    assert agreement([1, 2, 3, 4], [1, 2, 9, 4]) == 0.5


def test_a_shorter_output_agrees_with_what_it_has() -> None:
    assert agreement([1, 2, 3, 4], [1, 2]) == 0.5


@given(OUTPUT)
def test_an_output_agrees_with_itself(output: list[int]) -> None:
    assert agreement(output, output) == 1.0


@given(OUTPUT, OUTPUT)
def test_agreement_is_whole_only_for_equal_outputs(first: list[int], second: list[int]) -> None:
    assert (agreement(first, second) == 1.0) == (first == second)


def test_shares_are_means_over_outputs_with_a_standard_error() -> None:
    found = compared([[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 9], [5, 6]])
    assert found["equal_outputs"] == pytest.approx(2 / 3)
    assert found["agreed_tokens"] == pytest.approx(2.5 / 3)
    assert found["equal_outputs_error"] == pytest.approx(1 / 3)
