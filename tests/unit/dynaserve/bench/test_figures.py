import math

import pytest

from dynaserve.bench.figures import figures
from dynaserve.bench.slo import SloClass, Slos
from tests.unit.dynaserve.bench.made import observation

SLOS = Slos(SloClass(0.2, 0.0, 0.05), {"strict": SloClass(0.05, 0.0, 0.05)})


def test_goodput_counts_only_what_met_its_own_objective() -> None:
    seen = [
        observation(ttft_s=0.1),
        observation(ttft_s=0.1, traffic_class="strict"),
        observation(ttft_s=0.3),
        observation(gaps_s=(0.06, 0.01, 0.01)),
    ]
    found = figures(seen, SLOS, span_s=2.0)

    assert found["goodput_rps"] == 0.5
    assert found["goodput_output_tokens_s"] == 1.5
    assert found["attainment"] == 0.25
    assert found["ttft_attainment"] == 0.5
    assert found["tbt_attainment"] == 0.75
    assert found["classes"]["strict"]["attainment"] == 0.0
    assert found["classes"]["made"]["requests"] == 3


def test_refused_failed_and_unfinished_count_as_missed() -> None:
    seen = [
        observation(),
        observation(outcome="refused"),
        observation(outcome="failed"),
        observation(outcome="unfinished"),
    ]
    found = figures(seen, Slos(), span_s=1.0)

    assert (found["completed"], found["refused"], found["failed"], found["unfinished"]) == (
        1, 1, 1, 1,
    )  # fmt: skip
    assert found["attainment"] == found["ttft_attainment"] == found["tbt_attainment"] == 0.25


def test_times_are_those_of_completed_requests_with_the_usual_words() -> None:
    seen = [observation(ttft_s=0.1 * n, gaps_s=(0.02, 0.04)) for n in range(1, 12)]
    seen.append(observation(ttft_s=99.0, outcome="failed"))
    times = figures(seen, SLOS, span_s=1.0)["times"]

    assert times["mean_ttft_ms"] == pytest.approx(600.0)
    assert times["median_ttft_ms"] == pytest.approx(600.0)
    assert times["p90_ttft_ms"] == pytest.approx(1000.0)
    assert times["p99_ttft_ms"] == pytest.approx(1090.0)
    assert times["mean_tpot_ms"] == pytest.approx(30.0)
    assert times["median_itl_ms"] == pytest.approx(30.0)
    assert times["mean_e2el_ms"] == pytest.approx(660.0)
    assert times["mean_tbt_p99_of_request_ms"] == pytest.approx(40.0)


def test_warm_up_requests_are_left_out() -> None:
    warm = observation(ttft_s=5.0)
    warm.measured = False

    assert figures([warm, observation()], SLOS, span_s=1.0)["requests"] == 1


def test_throughput_is_over_the_time_until_the_last_token() -> None:
    seen = [observation(due_s=0.0), observation(due_s=1.0, ttft_s=2.96)]
    found = figures(seen, SLOS, span_s=1.0)

    assert found["busy_s"] == pytest.approx(4.0)
    assert found["request_throughput"] == pytest.approx(0.5)
    assert found["output_throughput"] == pytest.approx(1.5)
    assert found["total_token_throughput"] == pytest.approx(6.5)


def test_nothing_answered_has_no_times_and_no_attainment() -> None:
    found = figures([observation(outcome="refused")], SLOS, span_s=1.0)

    assert found["attainment"] == 0.0
    assert math.isnan(found["ttft_p50_ms"])
    assert found["cached_tokens"] is None
