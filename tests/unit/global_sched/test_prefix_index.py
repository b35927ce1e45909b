"""The prefix index: leading blocks only, bounded, forgetting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.global_sched.prefix_index import PrefixIndex


def test_only_leading_blocks_count() -> None:
    index = PrefixIndex(block_tokens=16)
    index.add("a", [1, 2, 4])
    index.add("b", [2, 3])
    assert index.cached_tokens([1, 2, 3, 4]) == {"a": 32}


def test_dropped_blocks_and_lost_instances_are_forgotten() -> None:
    index = PrefixIndex()
    index.add("a", [1, 2])
    index.remove("a", [2, 9])
    index.remove("unknown", [1])
    assert index.cached_tokens([1, 2]) == {"a": 16}
    index.forget("a")
    assert index.cached_tokens([1, 2]) == {}


@given(st.lists(st.integers(0, 50)), st.integers(1, 10))
def test_it_never_holds_more_than_its_bound_and_keeps_the_newest(
    hashes: list[int], bound: int
) -> None:
    index = PrefixIndex(max_blocks=bound)
    index.add("a", hashes)
    assert index.num_blocks("a") == min(bound, len(set(hashes)))
    assert not hashes or index.cached_tokens(hashes[-1:]) == {"a": 16}


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        PrefixIndex(max_blocks=0)
