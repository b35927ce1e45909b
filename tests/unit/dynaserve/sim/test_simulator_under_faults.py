"""Any arrivals, any lengths, any instances lost: watched after every event of the simulation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from dynaserve.sim.simulator import Event, SimSettings, Simulator
from dynaserve.sim.traces import SimRequest
from services.global_sched.policy import POLICIES
from shared.latency_model import LatencyProfile

POOL = SimSettings(LatencyProfile.load().model, instances=4, slo_tbt_s=0.025)
LOSSES = st.lists(st.tuples(st.floats(0.0, 8.0), st.integers(0, 3)), max_size=4)


class WatchedSimulator(Simulator):
    """Checks every account and every decision after each event."""

    def _occurrences(self, requests: Sequence[SimRequest]) -> Iterator[SimRequest | Event]:
        for due in super()._occurrences(requests):
            yield due
            for instance in self.instances:
                assert 0 <= instance.kv_used <= instance.kv_capacity
                assert instance.num_decodes == len(instance.running) <= instance.max_num_seqs
                assert instance.lost_tokens >= 0
                if instance.alive:
                    assert instance.outstanding_tokens >= 0
                    assert instance.pending_context >= 0
            fresh = [self._view(instance) for instance in self.instances if instance.alive]
            assert list(self.pool_view().instances) == fresh
        assert not self._events

    def assert_decisions_are_sound(self) -> None:
        for record in self.outcome.records:
            decision, view = record.decision, record.view
            if decision is None or view is None:
                continue
            assert decision.cut is None or 1 <= decision.cut <= view.max_cut
            assert decision.unsplit is None or decision.chosen.cost <= decision.unsplit.cost


@st.composite
def arrivals(draw: st.DrawFn) -> list[SimRequest]:
    """Bursts and single requests, tiny and huge, with and without a shared prefix."""
    number = draw(st.integers(0, 30))
    times = sorted(draw(st.lists(st.floats(0.0, 6.0), min_size=number, max_size=number)))
    at_once = draw(st.booleans())
    return [
        SimRequest(
            f"r{index}",
            0.5 if at_once else at_s,
            draw(st.one_of(st.integers(1, 20), st.integers(1, 9000))),
            draw(st.one_of(st.integers(1, 3), st.integers(1, 500))),
            draw(st.sampled_from(["a", "b"])),
            draw(st.sampled_from(["", "p", "q"])),
            draw(st.integers(0, 4000)),
        )
        for index, at_s in enumerate(times)
    ]


def burst(*lengths: tuple[int, int]) -> list[SimRequest]:
    """Requests of (prompt, output) tokens, all at once."""
    return [SimRequest(f"r{i}", 0.5, *both, "a", "", 0) for i, both in enumerate(lengths)]


@example(  # i0 is lost while a handoff waits for room there
    requests=burst((51, 3), (7797, 139), (4541, 1), (4541, 2)),
    losses=[(1.0, 0)],
    policy="dynaserve",
    batcher="slo",
    kv_tokens=10_000,
    noise=0.0,
    bus_latency_s=0.0,
)
@settings(max_examples=80, deadline=None)
@given(
    requests=arrivals(),
    losses=LOSSES,
    policy=st.sampled_from(["dynaserve", "colocated", "round_robin"]),
    batcher=st.sampled_from(["slo", "static:256", "static:2048"]),
    kv_tokens=st.sampled_from([10_000, 40_000]),
    noise=st.sampled_from([0.0, 0.3]),
    bus_latency_s=st.sampled_from([0.0, 0.3]),
)
def test_nothing_is_lost_and_no_account_goes_wrong_whatever_arrives_and_fails(
    requests: list[SimRequest],
    losses: list[tuple[float, int]],
    policy: str,
    batcher: str,
    kv_tokens: int,
    noise: float,
    bus_latency_s: float,
) -> None:
    pool = replace(
        POOL,
        batcher=batcher,
        kv_tokens=kv_tokens,
        step_noise=noise,
        losses=tuple(losses),
        bus_latency_s=bus_latency_s,
    )
    simulator = WatchedSimulator(pool, POLICIES[policy]())
    outcome = simulator.run(requests)
    simulator.assert_decisions_are_sound()
    survivors = {0, 1, 2, 3} - {index for _, index in losses}
    event(f"{len(survivors)} of 4 survive")
    assert len(outcome.records) == len(requests)
    for record in outcome.records:
        if record.refused:
            assert not survivors
        else:
            assert record.emitted == record.request.output_tokens
            assert record.finished_s >= record.first_token_s >= record.arrival_s
            assert len(record.gaps_ms()) == record.num_gaps
    for index in survivors:
        held = outcome.instances[index]
        assert (held.kv_used, held.num_decodes, held.context_sum) == (0, 0, 0)
        assert (held.outstanding_tokens, len(held.pending), held.pending_context) == (0, 0, 0)
