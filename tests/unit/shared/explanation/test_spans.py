"""The waterfall of a request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.explanation.spans import accounted, spans_of
from shared.schemas.events import Recovery
from tests.unit.shared.explanation.records import AT_S, P, cut_record, handoff, record, timing


def kinds(spans: list) -> list[tuple[str, str, float, float]]:  # type: ignore[type-arg]
    return [(s.kind, s.lane, round(s.start_s, 3), round(s.end_s, 3)) for s in spans]


def test_an_uncut_request_is_placed_queued_prefilled_and_decoded() -> None:
    assert kinds(spans_of(record())) == [
        ("place", "gateway", 0.0, 0.01),
        ("queue", "whole", 0.01, 0.05),
        ("prefill", "whole", 0.05, 0.3),
        ("decode", "whole", 0.3, 1.3),
    ]


def test_a_request_cut_inside_its_prompt_shows_hidden_and_exposed_transfer() -> None:
    assert kinds(spans_of(cut_record(ttft_s=0.4), [handoff()])) == [
        ("place", "gateway", 0.0, 0.01),
        ("queue", "alpha", 0.01, 0.02),
        ("held", "beta", 0.01, 0.2),
        ("prefill", "alpha", 0.02, 0.2),
        ("transfer_hidden", "transfer", 0.1, 0.2),
        ("transfer_exposed", "transfer", 0.2, 0.25),
        ("prefill", "beta", 0.25, 0.4),
        ("decode", "beta", 0.4, 1.3),
    ]


def test_alpha_decodes_when_the_cut_lies_in_the_output() -> None:
    found = kinds(spans_of(cut_record(cut=P + 4, ttft_s=0.1)))
    assert ("prefill", "alpha", 0.02, 0.1) in found
    assert ("decode", "alpha", 0.1, 0.2) in found
    assert ("decode", "beta", 0.25, 1.3) in found


def test_what_passes_until_beta_has_its_segment_is_time_on_the_bus() -> None:
    late = cut_record(
        segments=[timing("a", "alpha", 0.01, 0.02, 0.2), timing("b", "beta", 0.6, 0.62, 1.3)],
        ttft_s=0.7,
    )
    found = kinds(spans_of(late))
    assert ("bus", "beta", 0.2, 0.6) in found
    assert accounted(spans_of(late), 0.7) == pytest.approx(1.0)
    assert "held" not in {kind for kind, *_ in found}


def test_work_of_a_lost_placement_is_lost_and_the_next_placement_is_seen() -> None:
    again = record(
        epochs=2,
        place_s=0.03,
        segments=[
            timing("b", "whole", 0.01, 0.02, 0.5),
            timing("a", "whole", 0.62, 0.63, 1.3, epoch=2),
        ],
        recoveries=[
            Recovery(
                epoch=1,
                at_s=AT_S + 0.6,
                code="instance_lost",
                message="gone",
                instance_id="b",
                position=P,
                replaced_s=0.02,
            )
        ],
        ttft_s=0.8,
    )
    found = kinds(spans_of(again))
    assert ("lost", "whole", 0.01, 0.5) in found
    assert ("place", "gateway", 0.0, 0.01) in found
    assert ("place", "gateway", 0.6, 0.62) in found


def test_a_segment_that_never_started_was_queued_all_the_time() -> None:
    found = kinds(spans_of(record(segments=[timing("a", "whole", 0.01, None, 2.0)], ttft_s=None)))
    assert found[1:] == [("queue", "whole", 0.01, 2.0)]


def test_the_spans_cover_the_time_to_the_first_token() -> None:
    assert accounted(spans_of(record()), 0.3) == pytest.approx(1.0)
    assert accounted(spans_of(record(segments=[])), 0.3) == pytest.approx(0.01 / 0.3)
    assert accounted([], 0.0) == 1.0


@given(st.lists(st.floats(-1, 3), min_size=7, max_size=7), st.floats(0, 2), st.integers(1, P + 20))
def test_no_bar_ends_before_it_begins_whatever_clocks_say(
    times: list[float], kv_wait_s: float, cut: int
) -> None:
    segments = [
        timing("a", "alpha", times[0], times[1], times[2]),
        timing("b", "beta", times[3], times[4], times[5], kv_wait_s),
    ]
    spans = spans_of(cut_record(cut=cut, segments=segments, ttft_s=abs(times[6])), [handoff()])
    assert all(0 <= span.start_s < span.end_s for span in spans)
    assert spans == sorted(spans, key=lambda s: (s.start_s, s.end_s))
    assert 0 <= accounted(spans, 1.0) <= 1.0 + 1e-9
