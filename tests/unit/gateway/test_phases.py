"""Where the time to first token went."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.phases import ttft_phases
from shared.schemas.events import RequestRecord
from shared.schemas.place import Plan
from shared.schemas.request import Slo
from shared.schemas.tokens import SegmentTiming

P = 100


def timing(role: str, received_s: float, started_s: float | None, ended_s: float) -> SegmentTiming:
    return SegmentTiming.model_validate(
        {
            "instance_id": role,
            "request_id": "r",
            "epoch": 1,
            "role": role,
            "received_s": received_s,
            "started_s": started_s,
            "ended_s": ended_s,
        }
    )


def record(
    *segments: SegmentTiming, cut: int | None = None, ttft_s: float | None = 1.0
) -> RequestRecord:
    plan = Plan(
        request_id="r",
        epoch=1,
        scheduler_id="s",
        policy="p",
        alpha_id="alpha",
        beta_id=None if cut is None else "beta",
        cut=cut,
        reason="",
    )
    return RequestRecord(
        request_id="r",
        gateway_id="g",
        arrival_at_s=100.0,
        num_prompt_tokens=P,
        num_output_tokens=5,
        num_cached_tokens=0,
        slo=Slo(ttft_s=1, tbt_s=1),
        outcome="length",
        place_s=0.1,
        ttft_s=ttft_s,
        e2e_s=2.0,
        slo_met=True,
        epochs=1,
        plan=plan,
        segments=list(segments),
    )


def test_a_whole_request_has_place_queue_and_its_prompt() -> None:
    phases = ttft_phases(record(timing("whole", 100.1, 100.3, 105.0)))
    assert phases == pytest.approx({"place": 0.1, "queue": 0.2, "first": 0.7, "other": 0.0})


def test_beta_that_makes_the_first_token_adds_handoff_and_its_own_part() -> None:
    phases = ttft_phases(
        record(timing("alpha", 100.1, 100.2, 100.6), timing("beta", 100.1, 100.7, 105.0), cut=60)
    )
    assert phases == pytest.approx(
        {"place": 0.1, "queue": 0.1, "first": 0.4, "handoff": 0.1, "second": 0.3, "other": 0.0}
    )


def test_beta_behind_the_prompt_has_no_part_in_it() -> None:
    phases = ttft_phases(
        record(timing("alpha", 100.1, 100.2, 101.5), timing("beta", 100.1, 101.6, 105.0), cut=P)
    )
    assert "handoff" not in phases


def test_without_a_token_there_is_nothing_to_tell() -> None:
    assert ttft_phases(record(ttft_s=None)) == {}


def test_without_timings_all_but_the_placement_is_other() -> None:
    assert ttft_phases(record()) == pytest.approx({"place": 0.1, "other": 0.9})


@given(
    st.lists(st.floats(0, 3), min_size=4, max_size=4),
    st.one_of(st.none(), st.integers(1, 2 * P)),
    st.floats(0, 5),
)
def test_phases_are_never_negative_and_add_up(
    times_s: list[float], cut: int | None, ttft_s: float
) -> None:
    first_s, second_s, third_s, fourth_s = sorted(100 + each for each in times_s)
    if cut is None:
        segments = [timing("whole", first_s, second_s, fourth_s)]
    else:
        segments = [
            timing("alpha", first_s, second_s, third_s),
            timing("beta", first_s, third_s, fourth_s),
        ]
    phases = ttft_phases(record(*segments, cut=cut, ttft_s=ttft_s))
    assert all(spent_s >= 0 for spent_s in phases.values())
    assert sum(phases.values()) == pytest.approx(ttft_s)
