import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynaserve.bench.observation import Observation
from tests.unit.dynaserve.bench.made import observation, request


def test_times_count_from_when_the_request_was_due_not_from_when_it_was_sent() -> None:
    seen = observation(ttft_s=0.5)
    seen.sent_s = seen.due_s + 0.4

    assert seen.late_s == pytest.approx(0.4)
    assert seen.ttft_s == pytest.approx(0.5)
    assert seen.e2el_s == pytest.approx(0.54)


def test_tokens_of_one_chunk_are_no_time_apart() -> None:
    seen = Observation(request(output_tokens=5), 0.0)
    seen.saw_tokens(1.0, 3)
    seen.saw_tokens(1.4, 2)

    assert seen.tokens == 5
    assert sorted(seen.token_gaps_s()) == pytest.approx([0.0, 0.0, 0.0, 0.4])
    assert seen.chunk_gaps_s() == pytest.approx([0.4])
    assert seen.tpot_s == pytest.approx(0.1)


def test_nothing_seen_has_no_times() -> None:
    seen = Observation(request(), 0.0)

    assert all(math.isnan(each) for each in (seen.ttft_s, seen.e2el_s, seen.tpot_s))
    assert seen.tbt_p99_s == 0.0


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=400))
def test_at_most_one_gap_in_a_hundred_is_longer_than_the_p99(gaps_s: list[float]) -> None:
    seen = observation(gaps_s=tuple(gaps_s))
    found = sorted(seen.token_gaps_s())
    longer = sum(gap > seen.tbt_p99_s for gap in found)

    assert longer <= len(found) // 100
    assert seen.tbt_p99_s in found
    assert sum(gap >= seen.tbt_p99_s for gap in found) > len(found) // 100
