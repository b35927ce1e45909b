"""Durations in bins."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.live.bins import (
    FIRST_EDGE_S,
    NUM_BINS,
    RATIO,
    bin_of,
    distribution,
    merge,
    quantile,
)


@given(st.floats(FIRST_EDGE_S, 99.0))
def test_a_duration_lies_within_the_edges_of_its_bin(seconds: float) -> None:
    edge_s = FIRST_EDGE_S * RATIO ** bin_of(seconds)
    assert edge_s * 0.999999 <= seconds <= edge_s * RATIO * 1.000001


def test_what_is_out_of_range_is_in_the_outermost_bins() -> None:
    assert bin_of(0.0) == 0
    assert bin_of(1e6) == NUM_BINS - 1


@given(st.lists(st.floats(0.002, 50), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_is_as_exact_as_the_bins(values: list[float], share: float) -> None:
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    found = quantile(Counter(map(bin_of, values)), share)
    assert found is not None
    assert exact / RATIO * 0.999 <= found <= exact * RATIO * 1.001


def test_a_distribution_begins_with_its_first_bin_and_ends_with_its_last() -> None:
    found = distribution(merge([Counter(map(bin_of, [0.1, 0.1])), Counter(map(bin_of, [0.2]))]))
    assert (found.counts[0], found.counts[-1], sum(found.counts)) == (2, 1, 3)
    assert found.first_edge_s == pytest.approx(0.1, rel=RATIO - 1)


def test_nothing_has_an_empty_distribution() -> None:
    found = distribution(Counter())
    assert (found.counts, found.p50_s, found.p99_s) == ([], None, None)
