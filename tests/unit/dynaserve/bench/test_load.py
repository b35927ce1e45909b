from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynaserve.bench.load import Load, check_load, make_schedule, read_load_trace
from dynaserve.sim.traces import Trace, TraceRow
from shared.errors import InvalidRequest

RECORDED = Trace("recorded", tuple(TraceRow(float(n), 100 + n, 10 + n) for n in range(11)))
LENGTHS = Trace("lengths", tuple(TraceRow(None, 200 + n, 20) for n in range(7)))


def test_a_recorded_trace_keeps_its_rate_and_pattern() -> None:
    schedule = make_schedule(Load((RECORDED,)), None, 5.0)

    assert [each.arrival_s for each in schedule.requests] == pytest.approx([0, 1, 2, 3, 4])


def test_a_rate_stretches_time_and_keeps_rows() -> None:
    schedule = make_schedule(Load((RECORDED,)), 2.0, 5.0)

    assert [each.arrival_s for each in schedule.requests] == pytest.approx(
        [0.5 * n for n in range(10)]
    )
    assert [each.prompt_tokens for each in schedule.requests] == [100 + n for n in range(10)]


def test_lengths_without_times_arrive_as_poisson() -> None:
    schedule = make_schedule(Load((LENGTHS,)), 20.0, 100.0)

    assert len(schedule.requests) == pytest.approx(2000, rel=0.1)
    assert make_schedule(Load((LENGTHS,), seed=0), 20.0, 100.0) == schedule
    assert make_schedule(Load((LENGTHS,), seed=1), 20.0, 100.0) != schedule


def test_burstiness_below_one_makes_gaps_uneven() -> None:
    def unevenness(burstiness: float) -> float:
        at_s = [
            each.arrival_s
            for each in make_schedule(Load((LENGTHS,), burstiness=burstiness), 20.0, 200.0).requests
        ]
        gaps = [b - a for a, b in pairwise(at_s)]
        mean = sum(gaps) / len(gaps)
        return sum((gap - mean) ** 2 for gap in gaps) / len(gaps) / mean**2

    assert unevenness(0.25) == pytest.approx(4.0, rel=0.25)
    assert unevenness(1.0) == pytest.approx(1.0, rel=0.15)
    assert unevenness(4.0) == pytest.approx(0.25, rel=0.15)


def test_several_traces_alternate_in_windows() -> None:
    schedule = make_schedule(Load((RECORDED, LENGTHS), window_s=2.0), 10.0, 8.0)

    for each in schedule.requests:
        expected = ("recorded", "lengths")[int(each.arrival_s / 2.0) % 2]
        assert each.traffic_class == expected


@given(st.floats(0.001, 3.0), st.integers(3, 500))
def test_scaled_requests_fit_the_model_and_what_is_cut_is_counted(
    scale: float, max_model_len: int
) -> None:
    load = Load((RECORDED,), length_scale=scale, max_model_len=max_model_len)
    schedule = make_schedule(load, 1.0, 10.0)
    free = make_schedule(replace(load, max_model_len=None), 1.0, 10.0)

    def tokens(of: object) -> int:
        return sum(each.prompt_tokens + each.output_tokens for each in of.requests)  # type: ignore[attr-defined]

    for each in schedule.requests:
        assert each.prompt_tokens >= 1 and each.output_tokens >= 1
        assert each.prompt_tokens + each.output_tokens <= max_model_len
    assert tokens(free) - tokens(schedule) == schedule.capped_tokens
    assert (schedule.capped_requests == 0) == (schedule.capped_tokens == 0)
    assert free.capped_requests == 0


def test_shared_prefixes_leave_lengths_and_at_least_one_own_token() -> None:
    load = Load((RECORDED,), shared_prefix_tokens=105, num_shared_prefixes=2)
    requests = make_schedule(load, None, 10.0).requests

    assert [each.prompt_tokens for each in requests] == [100 + n for n in range(10)]
    assert {each.prefix_id for each in requests} == {"shared-0", "shared-1"}
    assert [each.prefix_tokens for each in requests] == [min(105, 99 + n) for n in range(10)]


@pytest.mark.parametrize(
    ("load", "rate"),
    [
        (Load((LENGTHS,)), None),
        (Load((LENGTHS,), arrivals="recorded"), 1.0),
        (Load((RECORDED, LENGTHS)), None),
        (Load((RECORDED, LENGTHS), arrivals="recorded"), 1.0),
        (Load((RECORDED,), arrivals="recorded", burstiness=0.5), 1.0),
    ],
)
def test_loads_that_contradict_themselves_are_refused(load: Load, rate: float | None) -> None:
    with pytest.raises(InvalidRequest):
        check_load(load, rate)


def test_burstiness_asks_for_made_arrivals_unless_said_otherwise() -> None:
    assert Load((RECORDED,)).is_recorded
    assert not Load((RECORDED,), burstiness=0.5).is_recorded
    assert not Load((RECORDED,), arrivals="poisson").is_recorded


def test_traces_come_from_files_or_are_made() -> None:
    assert read_load_trace("synthetic:64:8").name == "synthetic_64_8"
    for name in ("synthetic:64", "synthetic:a:b", "/no/such/file.csv"):
        with pytest.raises(InvalidRequest):
            read_load_trace(name)


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("a,b\n1,2\n")

    with pytest.raises(InvalidRequest, match="is not a trace"):
        read_load_trace(str(wrong))
