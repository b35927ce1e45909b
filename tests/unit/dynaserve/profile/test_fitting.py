"""From timed steps to a profile."""

import random

import pytest

from dynaserve.profile.fitting import make_profile
from shared.latency_model import LatencyModel, LatencyProfile, StepShape
from shared.schemas.segment import TimedStep
from tests.unit.global_sched.pool_stage import instance

TRUTH = LatencyModel(5.0, 0.1, 4e-4, 0.06, 6e-5)


def timed_steps(number: int) -> list[TimedStep]:
    draw = random.Random(4)
    steps = []
    for _ in range(number):
        decodes, tokens = draw.randint(0, 64), draw.choice([0, draw.randint(1, 2000)])
        shape = StepShape(decodes, decodes * draw.randint(16, 1500), tokens, 0.5 * tokens * tokens)
        step_s = 1e-3 * TRUTH.step_ms(shape) * draw.lognormvariate(0.0, 0.02)
        steps.append(TimedStep(**shape._asdict(), step_s=step_s))
    return steps


def test_the_profile_holds_the_engines_coefficients_and_where_they_come_from() -> None:
    profile = make_profile(instance("i", device="a GPU"), timed_steps(500))
    assert profile.model == pytest.approx(TRUTH, rel=0.1)
    assert 0.0 < profile.error.p50 < profile.error.p90 < profile.error.p99 < 0.1
    assert (profile.hardware, profile.model_name) == ("a GPU", "m")
    assert profile.versions["vllm"] == "0"
    assert LatencyProfile.from_json(profile.to_json()) == profile


def test_a_few_hiccups_of_the_host_do_not_move_the_fit() -> None:
    steps = timed_steps(500)
    for index in (3, 77, 250, 400):
        steps[index] = steps[index].model_copy(update={"step_s": 3.0})
    assert make_profile(instance("i"), steps).model == pytest.approx(TRUTH, rel=0.1)


def test_small_steps_that_wait_for_their_launch_are_not_taken_for_a_larger_base() -> None:
    launch_ms, steps = 25.0, timed_steps(500)
    for step in timed_steps(200):
        tokens = step.prefill_tokens % 40 + 1
        part = {"prefill_tokens": tokens, "prefill_context_tokens2": 0.5 * tokens * tokens}
        few = step.model_copy(update=part)
        decode_ms = TRUTH.decode_step_ms(few.num_decodes, few.decode_context_tokens)
        steps.append(few.model_copy(update={"step_s": 1e-3 * max(launch_ms, 1.2 * decode_ms)}))
    assert make_profile(instance("i"), steps).model == pytest.approx(TRUTH, rel=0.1)
