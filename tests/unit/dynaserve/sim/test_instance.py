"""One simulated engine: whose turn it is, and that everybody's comes."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from dynaserve.sim.instance import Segment, SimInstance
from dynaserve.sim.record import RequestRecord
from dynaserve.sim.traces import SimRequest
from services.gpu_instance.batcher import FORCED_EVERY, Batcher
from shared.latency_model import LatencyProfile

MODEL = LatencyProfile.load().model
SLO_S = 0.025
PAST_S, NEVER_S = -1.0, 1e9


def instance_with(decodes: int, context: int = 0, kv: int = 10**9) -> SimInstance:
    batcher = Batcher(MODEL, initial_margin=0.0)
    made = SimInstance(
        "one", MODEL, batcher, slo_tbt_s=SLO_S, kv_capacity=kv, max_num_seqs=decodes + 8
    )
    for number in range(decodes):
        decode = segment(f"decode{number}", 0, NEVER_S)
        decode.context, decode.decode_steps = context, 10**9
        made.hold(context)
        made.join_decodes(decode, 0.0)
    return made


def segment(name: str, tokens: int, deadline_s: float, arrival_s: float = 0.0) -> Segment:
    request = SimRequest(name, arrival_s, tokens, 10, "any")
    record = RequestRecord(request, 1.0, 1e3 * SLO_S, measured=True)
    return Segment(record, "whole", tokens, 0, 9, True, deadline_s)


def arrive(instance: SimInstance, prompt: Segment) -> Segment:
    instance.outstanding_tokens += prompt.remaining
    instance.add_prompt(prompt)
    return prompt


def step(instance: SimInstance, now_s: float) -> dict[str, int]:
    """Runs one; what each prompt got."""
    duration_ms = instance.start_step(now_s)
    assert duration_ms is not None
    result = instance.finish_step(now_s + 1e-3 * duration_ms, duration_ms, learn=False)
    for done in result.prefilled:
        instance.free(done.context)
    return {done.record.request.request_id: tokens for done, tokens in result.chunks}


@settings(max_examples=60, deadline=None)
@given(
    decodes=st.integers(0, 500),
    context=st.integers(0, 3000),
    tokens=st.integers(1, 60),
    others=st.lists(st.integers(1, 9000), min_size=1, max_size=5),
)
def test_the_oldest_lost_prompt_progresses_whatever_decodes_and_whoever_comes(
    decodes: int, context: int, tokens: int, others: list[int]
) -> None:
    instance = instance_with(decodes, context)
    lost = arrive(instance, segment("lost", tokens, PAST_S))
    least = instance.batcher.settings.min_prefill_tokens
    for number in range(FORCED_EVERY * math.ceil(tokens / least)):
        while len(instance._ordered) < 3:
            arrive(instance, segment(f"r{number}", others[number % len(others)], NEVER_S, 1.0))
        step(instance, 0.0)
        if lost.remaining == 0:
            return
    raise AssertionError(f"{lost.remaining} tokens left")


def test_a_prompt_that_the_decodes_leave_no_time_for_yields_before_it_is_begun() -> None:
    beside, alone = instance_with(150, 1000), instance_with(0)
    for instance in (beside, alone):
        arrive(instance, segment("long", 4000, 0.6))
        arrive(instance, segment("short", 100, 0.7))
    assert next(iter(step(beside, 0.0))) == "short"
    assert (beside.num_lost, alone.num_lost) == (1, 0)
    assert next(iter(step(alone, 0.0))) == "long"


def test_without_decodes_a_long_prompt_yields_while_it_could_still_be_in_time_alone() -> None:
    instance = instance_with(0)
    arrive(instance, segment("long", 8000, 0.6))
    arrive(instance, segment("short", 100, 0.7))
    assert list(step(instance, 0.0)) == ["short", "long"]
    assert instance.num_lost == 1


def test_in_a_turn_of_the_lost_only_their_oldest_leads() -> None:
    instance = instance_with(100, 1000)
    for name, arrival_s in (("new", 2.0), ("old", 1.0)):
        arrive(instance, segment(name, 300, PAST_S, arrival_s))
    arrive(instance, segment("well", 10**6, NEVER_S, 3.0))
    every = instance.batcher.settings.lost_every
    first = [next(iter(step(instance, 0.0))) for _ in range(every)]
    assert first == ["well"] * (every - 1) + ["old"]
    instance.batcher.step_index = every - 1
    assert [p.record.request.request_id for p in instance._queue(0.0)] == ["old", "well"]


def test_for_want_of_room_the_last_prompt_starts_over_before_a_decode_leaves() -> None:
    instance = instance_with(20, 100, kv=20 * 100 + 20 + 500 + 300)
    came = segment("came", 20, NEVER_S)
    came.context = 500
    instance.hold(came.context)
    arrive(instance, came)
    early = arrive(instance, segment("early", 10**5, 90.0))
    step(instance, 0.0)
    assert (came.remaining, early.context, instance.lacks_room) == (20, 300, True)
    assert instance.preempt() == []
    assert (came.context, early.context, early.remaining) == (500, 0, 10**5)
    assert instance.outstanding_tokens == 10**5 + 20


def test_without_a_begun_prompt_the_newest_decode_leaves() -> None:
    instance = instance_with(20, 100, kv=20 * 100 + 510)
    came = segment("came", 20, NEVER_S)
    came.context = 500
    instance.hold(came.context)
    arrive(instance, came)
    newest = next(reversed(instance.running))
    assert instance.lacks_room
    assert instance.preempt() == [newest]
    assert came.context == 500
