"""The prefix index: leading chunks only, bounded, forgetting, right for every instance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.global_sched.prefix_index import PrefixIndex


def chunk(number: int) -> bytes:
    return number.to_bytes(8, "little")


def chunks(*numbers: int) -> list[bytes]:
    return [chunk(number) for number in numbers]


def test_only_leading_chunks_count() -> None:
    index = PrefixIndex()
    index.add("a", chunks(1, 2, 4))
    index.add("b", chunks(2, 3))
    assert index.leading(chunks(1, 2, 3, 4)) == {"a": 2}


def test_who_holds_more_is_told_as_such() -> None:
    index = PrefixIndex()
    for name, most in (("a", 1), ("b", 3), ("c", 2)):
        index.add(name, chunks(*range(most)))
    assert index.leading(chunks(0, 1, 2, 3)) == {"a": 1, "b": 3, "c": 2}


def test_dropped_chunks_and_lost_instances_are_forgotten() -> None:
    index = PrefixIndex()
    index.add("a", chunks(1, 2))
    index.add("b", chunks(1))
    index.remove("a", chunks(2, 9))
    index.remove("unknown", chunks(1))
    assert index.leading(chunks(1, 2)) == {"a": 1, "b": 1}
    index.forget("a")
    assert index.leading(chunks(1, 2)) == {"b": 1}
    index.forget("b")
    assert index.leading(chunks(1, 2)) == {} and index.num_held == 0 and not index._holders


@given(st.lists(st.integers(0, 50)), st.integers(1, 10))
def test_it_never_holds_more_than_its_bound_and_keeps_the_newest(
    numbers: list[int], bound: int
) -> None:
    index = PrefixIndex(max_chunks=bound)
    index.add("a", chunks(*numbers))
    assert index.num_chunks("a") == min(bound, len(set(numbers))) == len(index._holders)
    assert not numbers or index.leading(chunks(numbers[-1])) == {"a": 1}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "forget"]),
        st.sampled_from("abc"),
        st.lists(st.integers(0, 6), max_size=5),
    ),
    max_size=30,
)


@given(STEPS, st.lists(st.integers(0, 6), max_size=6))
def test_it_says_what_plain_sets_would(
    steps: list[tuple[str, str, list[int]]], prompt: list[int]
) -> None:
    index, plain = PrefixIndex(), {name: set[int]() for name in "abc"}
    for what, name, numbers in steps:
        if what == "add":
            index.add(name, chunks(*numbers))
            plain[name] |= set(numbers)
        elif what == "remove":
            index.remove(name, chunks(*numbers))
            plain[name] -= set(numbers)
        else:
            index.forget(name)
            plain[name].clear()
    expected = {}
    for name, held in plain.items():
        leading = next((i for i, n in enumerate(prompt) if n not in held), len(prompt))
        if leading:
            expected[name] = leading
    assert index.leading(iter(chunks(*prompt))) == expected


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        PrefixIndex(max_chunks=0)
