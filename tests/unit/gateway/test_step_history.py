"""What is remembered of the instances' steps."""

from services.gateway.step_history import StepHistory
from shared.schemas.telemetry import InstanceLoad
from shared.schemas.tokens import SegmentTiming


def load(at_s: float, step_s: float, num_steps: int, decodes: int = 2) -> InstanceLoad:
    return InstanceLoad(
        instance_id="a",
        sequence=num_steps,
        at_s=at_s,
        num_running=decodes,
        num_waiting=1,
        num_decodes=decodes,
        context_sum=0,
        outstanding_prefill_tokens=0,
        free_blocks=1,
        num_blocks=1,
        max_num_batched_tokens=1,
        step_s=step_s,
        num_steps=num_steps,
    )


def timing(started_s: float, ended_s: float) -> SegmentTiming:
    return SegmentTiming(
        instance_id="a",
        request_id="r",
        epoch=1,
        role="whole",
        received_s=started_s,
        started_s=started_s,
        ended_s=ended_s,
    )


def test_steps_are_told_apart_by_the_first_token() -> None:
    history = StepHistory()
    for number, (at_s, step_s) in enumerate([(1.5, 0.9), (2.5, 0.1), (3.0, 0.3)], start=1):
        history.add(load(at_s, step_s, number))
    before, after = history.of_segment(timing(1.0, 4.0), first_token_s=2.0)
    assert (before.phase, before.num_samples, before.longest_step_s) == ("prefill", 1, 0.9)
    assert (after.phase, after.num_samples, after.longest_step_s) == ("decode", 2, 0.3)
    assert after.median_step_s == 0.1
    assert (after.most_decodes, after.most_waiting) == (2, 1)


def test_steps_outside_the_segment_do_not_count() -> None:
    history = StepHistory()
    history.add(load(1.0, 0.5, 1))
    history.add(load(9.0, 0.5, 2))
    assert history.of_segment(timing(2.0, 8.0), first_token_s=3.0) == []


def test_an_idle_instance_that_repeats_its_report_is_counted_once() -> None:
    history = StepHistory()
    for at_s in (1.0, 1.1, 1.2):
        history.add(load(at_s, 0.5, 7))
    (seen,) = history.of_segment(timing(0.5, 2.0), first_token_s=0.5)
    assert seen.num_samples == 1


def test_the_memory_is_bounded_and_ends_with_the_instance() -> None:
    history = StepHistory(max_samples=3)
    for number in range(10):
        history.add(load(float(number), 0.5, number))
    (seen,) = history.of_segment(timing(-1.0, 20.0), first_token_s=-1.0)
    assert seen.num_samples == 3
    history.forget("a")
    assert history.of_segment(timing(-1.0, 20.0), first_token_s=-1.0) == []
