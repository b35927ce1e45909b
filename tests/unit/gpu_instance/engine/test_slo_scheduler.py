"""The SLO batcher inside vLLM's own scheduler, with no model behind it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from benchmarks.batcher_cost import Stopwatch, TimedAsync, TimedSync, fake_tokens, make_scheduler
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
