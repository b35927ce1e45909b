"""One run judged under several TBT objectives."""

from array import array

from benchmarks.gpu_suite.goodput import judged, kept, summary
from dynaserve.bench.observation import Observation
from dynaserve.bench.slo import parse_slos
from dynaserve.sim.traces import SimRequest


def seen(gap_s: float) -> Observation:
    request = SimRequest("r", 0.0, 100, 3, "class")
    times = array("d", [0.2, 0.2 + gap_s, 0.2 + 2 * gap_s])
    return Observation(request, 0.0, outcome="ok", chunk_s=times, chunk_tokens=array("I", [1] * 3))


def test_the_same_run_is_judged_by_each_objective() -> None:
    runs = [seen(0.02), seen(0.07)]
    slos = parse_slos(["1000"], [], ["50"])
    assert judged(runs, slos, 50, 1.0)["attainment"] == 0.5
    assert judged(runs, slos, 100, 1.0)["attainment"] == 1.0


def test_figures_that_are_no_numbers_become_null() -> None:
    found = kept(judged([], parse_slos(["1000"], [], ["50"]), 50, 1.0))
    assert found["ttft_p99_ms"] is None
    assert found["requests"] == 0


def test_the_summary_keeps_every_objective_of_a_system() -> None:
    rows = [
        {"system": "a/slo", "by_tbt_ms": {"100": {"attainment": 0.9}}},
        {"system": "a/slo", "by_tbt_ms": {"50": {"attainment": 0.8}}},
    ]
    assert summary(rows) == {"a/slo": {"100": 0.9, "50": 0.8}}
