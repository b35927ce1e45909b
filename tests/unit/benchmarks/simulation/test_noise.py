"""Policies on steps that scatter."""

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulation.noise import CONFIGURATIONS, Untold, planned
from dynaserve.sim.simulator import SimSettings, Simulator
from dynaserve.sim.traces import poisson_arrivals, synthetic_trace
from shared.latency_model import LatencyProfile

POOL = SimSettings(LatencyProfile.load().model, slo_tbt_s=0.05)
ARRIVALS = partial(poisson_arrivals, synthetic_trace(1500, 60))


def first_tokens_s(name: str, noise: float) -> list[float]:
    each = planned(name, "conv", ARRIVALS, POOL, noise)
    outcome = Simulator(each.settings, each.policy()).run(ARRIVALS(10.0, 10.0))
    return [record.first_token_s for record in outcome.records]


def test_knowing_the_margins_changes_nothing_where_there_are_none() -> None:
    assert first_tokens_s("dynaserve", 0.0) == first_tokens_s("dynaserve untold", 0.0)
    assert first_tokens_s("dynaserve", 0.1) != first_tokens_s("dynaserve untold", 0.1)


@given(st.floats(0.0, 1.0))
def test_all_run_with_the_noise_asked_for_and_one_alone_is_not_told(noise: float) -> None:
    every = [planned(name, "conv", ARRIVALS, POOL, noise) for name in CONFIGURATIONS]
    assert {each.settings.step_noise for each in every} == {noise}
    assert [each.policy is Untold for each in every] == [False, True, False, False]
