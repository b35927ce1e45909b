"""The pool with one queue for all prompts."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.shared_queue import SharedQueue
from dynaserve.sim.simulator import SimSettings, Simulator
from dynaserve.sim.traces import SimRequest, poisson_arrivals, synthetic_trace
from services.global_sched.policy import POLICIES
from shared.latency_model import LatencyProfile

POOL = SimSettings(LatencyProfile.load().model, instances=3)
RATES = st.floats(0.5, 40.0)


def requests(rate: float) -> list[SimRequest]:
    return poisson_arrivals(synthetic_trace(1500, 60), rate, 10.0)


@settings(max_examples=10, deadline=None)
@given(rate=RATES, instances=st.integers(1, 4))
def test_every_request_is_served_by_one_instance(rate: float, instances: int) -> None:
    asked = requests(rate)
    outcome = SharedQueue(replace(POOL, instances=instances)).run(asked)
    assert len(outcome.records) == len(asked)
    for record in outcome.records:
        assert record.emitted == record.request.output_tokens
        assert record.cut is None
    assert all(each.kv_used == 0 for each in outcome.instances)


def test_a_prompt_waits_for_no_instance_when_another_is_free() -> None:
    together = [replace(each, arrival_s=0.0) for each in requests(5.0)[:3]]
    outcome = SharedQueue(POOL).run(together)
    assert {record.decision.alpha_id for record in outcome.records if record.decision} == {
        "i0",
        "i1",
        "i2",
    }


def test_it_keeps_the_median_of_placing_by_least_load() -> None:
    asked = requests(15.0)
    placed = Simulator(POOL, POLICIES["colocated"]()).run(asked)
    shared = SharedQueue(POOL).run(asked)
    medians = [np.median([r.ttft_s for r in each.records]) for each in (placed, shared)]
    assert medians[1] < 1.1 * medians[0]
