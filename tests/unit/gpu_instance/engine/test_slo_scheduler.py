"""The SLO batcher inside vLLM's own scheduler, with no model behind it."""

import math
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from benchmarks.batcher_cost import Stopwatch, TimedAsync, TimedSync, fake_tokens, make_scheduler
from services.gpu_instance.batcher import Batcher
from services.kv_transfer.connector.connector import DynaServeConnector
from shared.latency_model import LatencyProfile, StepShape
from shared.schemas.request import Slo

ASKED = st.lists(
    st.tuples(
        st.integers(0, 30),  # step in which it arrives
        st.integers(1, 1500),  # prompt tokens
        st.integers(1, 60),  # output tokens
        st.sampled_from([1e-4, 0.02, 1.0]),  # TBT and TTFT objectives, seconds: hopeless to easy
    ),
    min_size=1,
    max_size=24,
)


@pytest.fixture(scope="module", params=[TimedSync, TimedAsync])
def scheduler(request: pytest.FixtureRequest) -> Any:
    made = make_scheduler(request.param, "slo")
    made.watch = Stopwatch()
    return made


def add(scheduler: Any, name: str, prompt: int, output: int, slo_s: float) -> None:
    params = SamplingParams(max_tokens=output, ignore_eos=True)
    request = Request(name, [5] * prompt, params, None)
    vars(request)["slo"] = Slo(ttft_s=slo_s, tbt_s=slo_s)
    scheduler.add_request(request)


def add_beta(scheduler: Any, name: str, prompt: int) -> None:
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    request = Request(name, [5] * prompt, params, None)
    request.kv_transfer_params = {"side": "beta", "cut": prompt - 1}
    vars(request)["slo"] = Slo(ttft_s=60.0, tbt_s=1.0)
    scheduler.add_request(request)


def step(scheduler: Any) -> dict[str, int]:
    scheduled = scheduler.schedule()
    scheduler.update_from_output(scheduled, fake_tokens(scheduled, scheduler.requests))
    return dict(scheduled.num_scheduled_tokens)


def with_connector(scheduler: Any) -> Any:
    """Betas' KV comes from elsewhere, when the test says so."""

    def matched(request: Request, num_local: int) -> tuple[int, bool]:
        is_beta = request.kv_transfer_params is not None and request.num_computed_tokens == 0
        return (request.num_tokens - 1 - num_local, True) if is_beta else (0, False)

    connector = Mock(spec=DynaServeConnector)
    connector.hear_arrivals.return_value = None
    connector.take_step_s.return_value = None
    connector.get_num_new_matched_tokens.side_effect = matched
    connector.request_finished.return_value = (False, None)
    connector.take_events.return_value = ()
    connector.has_pending_push_work.return_value = False
    connector.get_loaded_kv_cache_group_ids.return_value = ()
    scheduler.connector = connector
    return scheduler


@settings(max_examples=15, deadline=None)
@given(asked=ASKED, mode=st.sampled_from(["slo", "static:64", "static:2048"]))
def test_every_request_ends_and_every_step_serves_all_decodes_within_the_bound(
    scheduler: Any, asked: list[tuple[int, int, int, float]], mode: str
) -> None:
    scheduler.batcher.set_mode(mode)
    coming = sorted((at, index) for index, (at, *_) in enumerate(asked))
    made: dict[str, int] = {}
    # A prompt gets 16 tokens in one of 16 steps at the very least, one prompt after the other.
    most_steps = 31 + sum(prompt + output + 32 for _, prompt, output, _ in asked)
    for step in range(most_steps):
        while coming and coming[0][0] <= step:
            _, index = coming.pop(0)
            add(scheduler, f"r{index}", *asked[index][1:])
        decoding = {r.request_id for r in scheduler.running if not r.is_prefill_chunk}
        scheduled = scheduler.schedule()
        assert scheduled.total_num_scheduled_tokens <= scheduler.configured_tokens
        if mode == "slo":
            assert decoding <= set(scheduled.num_scheduled_tokens)
        outputs = scheduler.update_from_output(
            scheduled, fake_tokens(scheduled, scheduler.requests)
        )
        for batch in outputs.values():
            for output in batch.outputs:
                made[output.request_id] = made.get(output.request_id, 0) + len(output.new_token_ids)
        if not (coming or scheduler.running or scheduler.waiting):
            break
    assert made == {f"r{index}": output for index, (_, _, output, _) in enumerate(asked)}
    assert not scheduler.paces
    assert scheduler.num_orphaned_blocks() == 0


@pytest.fixture(params=[TimedSync, TimedAsync])
def holder(request: pytest.FixtureRequest) -> Any:
    """Four requests decode; handoffs can come."""
    made = with_connector(make_scheduler(request.param, "slo"))
    made.watch = Stopwatch()
    for number in range(4):
        add(made, f"decode{number}", 20, 1000, 1.0)
    while len(made.running) < 4 or any(r.is_prefill_chunk for r in made.running):
        step(made)
    return made


def test_a_beta_goes_on_in_the_step_after_its_kv_came_though_only_decodes_run(holder: Any) -> None:
    add_beta(holder, "beta", 500)
    assert "beta" not in step(holder)
    assert holder.load().inbound_prefill_tokens == 1
    assert "beta" not in step(holder)
    holder.finished_recving_kv_req_ids.add("beta")
    assert holder.load().inbound_prefill_tokens == 0
    assert step(holder)["beta"] == 1


def test_kv_that_is_heard_of_between_steps_makes_its_request_ready_for_the_next(
    holder: Any,
) -> None:
    add_beta(holder, "beta", 500)
    step(holder)
    arrived = KVConnectorOutput(finished_recving={"beta"})
    holder.connector.hear_arrivals.side_effect = [arrived, None]
    assert step(holder)["beta"] == 1
    holder.connector.hear_workers.assert_called_once_with(arrived)
    holder.connector.update_connector_output.assert_called_once_with(arrived)


def test_decodes_that_are_late_or_have_no_token_yet_bound_the_step_by_their_whole_slo(
    holder: Any,
) -> None:
    for pace in holder.paces.values():
        pace.tbt_s, pace.last_token_s = 0.05, -math.inf
    # What it has learned of these steps, which compute nothing, would let any prompt fit.
    holder.batcher = Batcher(LatencyProfile.load().model, holder.batcher.settings)
    add(holder, "long", 2000, 4, 60.0)
    model = holder.batcher.model
    chunk = step(holder)["long"]
    assert 0 < chunk < 2000
    assert model.step_ms(StepShape(4, 100, chunk, 0.5 * chunk * chunk)) <= 50.0


def test_a_prompt_that_takes_many_steps_leaves_room_for_betas(holder: Any) -> None:
    holder.batcher.settings = replace(holder.batcher.settings, max_num_batched_tokens=64)
    add(holder, "long", 1500, 4, 60.0)
    assert step(holder)["long"] == 60
    add_beta(holder, "beta", 500)
    assert holder.load().inbound_prefill_tokens == 1
    step(holder)
    assert holder.connector.update_state_after_alloc.call_args.args[0].request_id == "beta"
    holder.finished_recving_kv_req_ids.add("beta")
    served = step(holder)
    assert (served["beta"], served["long"]) == (1, 59)
    assert holder.scheduler_config.long_prefill_token_threshold == 0


def test_betas_whose_blocks_were_not_given_yet_count_as_what_they_will_compute(holder: Any) -> None:
    add_beta(holder, "beta", 500)
    load = holder.load()
    assert (load.outstanding_prefill_tokens, load.inbound_prefill_tokens) == (0, 1)
    assert load.num_pending_decodes == 1


def test_in_a_turn_of_the_lost_only_their_oldest_leads_what_waits(holder: Any) -> None:
    holder.batcher.settings = replace(holder.batcher.settings, max_num_batched_tokens=64)
    every = holder.batcher.settings.lost_every
    add(holder, "runs", 1500, 4, 60.0)
    step(holder)
    for name, slo_s in (("lost1", 1e-4), ("lost2", 1e-4), ("well", 60.0)):
        add(holder, name, 100, 4, slo_s)

    def waiting_at(step_index: int) -> list[str]:
        holder.batcher.step_index = step_index
        assert "runs" in step(holder)
        return [request.request_id for request in holder.waiting]

    holder._ranked_s = -1.0
    assert waiting_at(0) == ["well", "lost1", "lost2"]
    assert waiting_at(every - 1) == ["lost1", "well", "lost2"]
    assert waiting_at(every) == ["well", "lost1", "lost2"]


def test_in_a_turn_of_the_lost_one_that_runs_leads_and_none_that_waits(holder: Any) -> None:
    holder.batcher.settings = replace(holder.batcher.settings, max_num_batched_tokens=64)
    add(holder, "lost1", 1500, 4, 1e-4)
    step(holder)
    add(holder, "lost2", 100, 4, 1e-4)
    add(holder, "well", 100, 4, 60.0)
    holder.batcher.step_index = holder.batcher.settings.lost_every - 1
    holder._ranked_s = -1.0
    assert step(holder)["lost1"] == 60
    assert [request.request_id for request in holder.waiting] == ["well", "lost2"]
