"""The simulator: nothing is lost or starves, accounts stay legal, physics as expected."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynaserve.sim.bound import bound_rps
from dynaserve.sim.capacity import Scenario, fewest_instances, find_capacity
from dynaserve.sim.report import report
from dynaserve.sim.simulator import SimOutcome, SimSettings, Simulator
from dynaserve.sim.traces import SimRequest, hybrid_arrivals, poisson_arrivals, synthetic_trace
from services.global_sched.length_predictor import LengthPredictor
from services.global_sched.policy import POLICIES
from services.global_sched.policy.views import LengthQuantiles
from shared.latency_model import LatencyProfile

MODEL = LatencyProfile.load().model
POOL = SimSettings(MODEL, instances=2, slo_tbt_s=0.025)

arrivals = st.lists(
    st.builds(
        SimRequest,
        request_id=st.uuids().map(str),
        arrival_s=st.floats(0.0, 5.0),
        prompt_tokens=st.integers(1, 9000),
        output_tokens=st.integers(1, 400),
        traffic_class=st.sampled_from(["a", "b"]),
        prefix_id=st.sampled_from(["", "p"]),
        prefix_tokens=st.integers(0, 4000),
    ),
    max_size=40,
).map(lambda some: sorted(some, key=lambda one: one.arrival_s))


def run(pool: SimSettings, policy: str, requests: list[SimRequest]) -> SimOutcome:
    pool = replace(pool, split_roles=policy == "disaggregated")
    return Simulator(pool, POLICIES[policy]()).run(requests)


def assert_settled(outcome: SimOutcome) -> None:
    for instance in outcome.instances:
        if instance.alive:
            assert (instance.kv_used, instance.num_decodes, instance.context_sum) == (0, 0, 0)
            assert (instance.outstanding_tokens, instance.lost_tokens) == (0, 0)
            assert (len(instance.pending), instance.pending_context) == (0, 0)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(max_examples=40, deadline=None)
@given(
    requests=arrivals,
    mode=st.sampled_from(["slo", "static:512"]),
    kv=st.sampled_from([12_000, 526_000]),
)
def test_every_request_ends_with_all_its_tokens_and_all_accounts_at_zero(
    policy: str, requests: list[SimRequest], mode: str, kv: int
) -> None:
    outcome = run(replace(POOL, batcher=mode, kv_tokens=kv), policy, requests)
    assert len(outcome.records) == len(requests)
    for record in outcome.records:
        assert record.finished_s >= record.first_token_s >= record.arrival_s
        assert record.emitted == record.request.output_tokens
        assert len(record.gaps_ms()) == record.num_gaps
    assert_settled(outcome)


@settings(max_examples=40, deadline=None)
@given(
    requests=arrivals, at_s=st.floats(0.0, 6.0), policy=st.sampled_from(["dynaserve", "colocated"])
)
def test_no_request_is_lost_with_its_instance(
    requests: list[SimRequest], at_s: float, policy: str
) -> None:
    outcome = run(replace(POOL, instances=3, losses=((at_s, 1),)), policy, requests)
    for record in outcome.records:
        assert record.finished_s >= 0.0
        assert record.emitted == record.request.output_tokens
    assert_settled(outcome)


def test_with_the_slo_batcher_no_gap_exceeds_the_slo() -> None:
    requests = poisson_arrivals(synthetic_trace(1000, 100), 10.0, 20.0)
    outcome = run(POOL, "colocated", requests)
    assert max(max(record.gaps_ms(), default=0.0) for record in outcome.records) <= 25.0 + 1e-6


def test_dynaserve_serves_more_than_colocated_at_a_tight_slo_and_no_less_at_a_loose_one() -> None:
    trace = synthetic_trace(2700, 180)

    def capacity(policy: str, slo_tbt_s: float) -> float:
        pool = replace(POOL, slo_tbt_s=slo_tbt_s)
        load = lambda rate, until_s: poisson_arrivals(trace, rate, until_s)  # noqa: E731
        return find_capacity(Scenario(pool, POLICIES[policy], load, 60.0, 10.0), precision=0.03)

    assert capacity("dynaserve", 0.025) > 1.1 * capacity("colocated", 0.025)
    assert capacity("dynaserve", 0.1) > 0.96 * capacity("colocated", 0.1)


@pytest.mark.parametrize("wrong", [0.1, 10.0])
def test_length_predictions_ten_times_off_lose_no_request(
    wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = LengthPredictor.predict

    def predict(self: LengthPredictor, traffic_class: str, max_tokens: int) -> LengthQuantiles:
        return LengthQuantiles(*(wrong * value for value in right(self, traffic_class, max_tokens)))

    monkeypatch.setattr(LengthPredictor, "predict", predict)
    requests = poisson_arrivals(synthetic_trace(2000, 150), 7.0, 30.0)
    outcome = run(POOL, "dynaserve", requests)
    assert_settled(outcome)
    assert report(outcome, POOL, 30.0)["attainment"] > 0.95


def test_goodput_stays_below_the_clairvoyant_bound() -> None:
    requests = poisson_arrivals(synthetic_trace(1500, 150), 30.0, 30.0)
    outcome = run(POOL, "dynaserve", requests)
    figures = report(outcome, POOL, outcome.end_s)
    assert 0.0 < figures["bound_fraction"] <= 1.0
    assert bound_rps(requests, POOL) < 30.0


def test_the_policy_sees_the_margins_of_noisy_instances_and_none_of_exact_ones() -> None:
    requests = poisson_arrivals(synthetic_trace(2000, 200), 8.0, 20.0)
    for noise in (0.0, 0.1):
        simulator = Simulator(replace(POOL, step_noise=noise), POLICIES["dynaserve"]())
        simulator.run(requests)
        views = simulator.pool_view().instances
        told = [view.step_margin for view in views]
        assert told == [instance.batcher.margin for instance in simulator.instances]
        assert max(told) > 0.05 if noise else max(told) == 0.0


def test_fewest_instances_grow_with_the_rate() -> None:
    trace = synthetic_trace(1000, 100)
    load = lambda rate, until_s: poisson_arrivals(trace, rate, until_s)  # noqa: E731
    scenario = Scenario(POOL, POLICIES["colocated"], load, 15.0, 2.0)
    few, many = fewest_instances(scenario, 5.0), fewest_instances(scenario, 40.0)
    assert few is not None and many is not None
    assert few < many


def test_refused_requests_count_as_missed() -> None:
    requests = poisson_arrivals(synthetic_trace(4000, 100), 30.0, 20.0)
    outcome = run(replace(POOL, refuse_lost=True), "colocated", requests)
    figures = report(outcome, POOL, 20.0)
    assert figures["refused"] > 0
    assert figures["attainment"] <= 1.0 - figures["refused"] / figures["requests"]


def test_hybrid_windows_offer_the_shares_asked_for() -> None:
    kinds = [synthetic_trace(100, 10), synthetic_trace(200, 10)]
    requests = hybrid_arrivals(kinds, 50.0, 120.0, shares=[3.0, 1.0], window_s=10.0)
    first = sum(one.traffic_class == kinds[0].name for one in requests)
    assert 2.5 < first / (len(requests) - first) < 3.5
    assert 45.0 < len(requests) / 120.0 < 55.0
    assert {one.traffic_class for one in requests if one.arrival_s < 10.0} == {kinds[0].name}


def test_the_bus_delays_first_tokens_and_the_engines_overhead_every_token() -> None:
    requests = [SimRequest("r", 0.0, 1000, 21, "a")]
    plain = run(POOL, "colocated", requests).records[0]
    slower = replace(POOL, bus_latency_s=0.05, step_overhead_s=0.002)
    delayed = run(slower, "colocated", requests).records[0]
    assert delayed.ttft_s == pytest.approx(plain.ttft_s + 0.052)
    assert sum(delayed.gaps_ms()) == pytest.approx(sum(plain.gaps_ms()) + 20 * 2.0)


def test_steps_with_prompts_last_as_long_as_their_launch_and_decodes_alone_do_not() -> None:
    requests = poisson_arrivals(synthetic_trace(200, 50), 1.0, 10.0)
    outcome = run(replace(POOL, launch_ms=21.0), "colocated", requests)
    assert_settled(outcome)
    every_ms = [ms for instance in outcome.instances for ms in instance.durations_ms]
    launched = [ms for ms in every_ms if ms == 21.0]
    assert 0.5 * len(requests) < len(launched) <= len(requests)
    assert min(every_ms) < 10.0
    assert not any(10.0 < ms < 21.0 for ms in every_ms)
