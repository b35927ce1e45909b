"""Length predictions ten times off: no request is lost, every plan is legal, only gain is lost."""

import pytest

from dynaserve.sim.report import Report, report
from dynaserve.sim.simulator import SimOutcome, SimSettings, Simulator
from dynaserve.sim.traces import SimRequest, Trace, poisson_arrivals, synthetic_trace
from services.global_sched.length_predictor import LengthPredictor
from services.global_sched.policy import POLICIES
from services.global_sched.policy.views import LengthQuantiles
from shared.latency_model import LatencyProfile

MODEL = LatencyProfile.load().model
DURATION_S = 40.0
LEAST_SHARE = 0.97
"""Of the requests that colocated serves in time, at a rate near its capacity."""

LOADS = [
    (0.025, synthetic_trace(2000, 150), 11.0),
    (0.025, synthetic_trace(1000, 250), 16.0),
    (0.05, synthetic_trace(2700, 180), 10.0),
    (0.1, synthetic_trace(2000, 150), 16.0),
]


class Skewed(LengthPredictor):
    """What the real one predicts, times ``factor``; never beyond what the request may make."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def predict(self, traffic_class: str, max_tokens: int, model: str = "") -> LengthQuantiles:
        right = super().predict(traffic_class, max_tokens, model)
        most = float(max(max_tokens, 1))
        return LengthQuantiles(*(min(max(self._factor * each, 1.0), most) for each in right))


def run(
    policy: str, slo_tbt_s: float, requests: list[SimRequest], factor: float = 1.0
) -> tuple[SimOutcome, Report]:
    pool = SimSettings(MODEL, instances=2, slo_tbt_s=slo_tbt_s)
    simulator = Simulator(pool, POLICIES[policy]())
    simulator.predictor = Skewed(factor)
    outcome = simulator.run(requests)
    return outcome, report(outcome, pool, DURATION_S)


@pytest.mark.parametrize("factor", [0.1, 10.0])
@pytest.mark.parametrize(("slo_tbt_s", "trace", "rate"), LOADS)
def test_wrong_lengths_lose_no_request_and_cost_no_more_than_the_gain_of_cutting(
    slo_tbt_s: float, trace: Trace, rate: float, factor: float
) -> None:
    requests = poisson_arrivals(trace, rate, DURATION_S)
    outcome, figures = run("dynaserve", slo_tbt_s, requests, factor)
    assert len(outcome.records) == len(requests)
    for record in outcome.records:
        assert not record.refused and record.emitted == record.request.output_tokens
        assert record.view is not None
        assert record.cut is None or 1 <= record.cut <= record.view.max_cut
    _, colocated = run("colocated", slo_tbt_s, requests)
    assert colocated["attainment"] > 0.85, "the load is meant to be one that a pool can carry"
    assert figures["attainment"] >= LEAST_SHARE * colocated["attainment"]
    assert figures["goodput_rps"] >= LEAST_SHARE * colocated["goodput_rps"]
