"""The online latency model: what steps teach, and what they do not."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.latency_model import CPU_DEMO_PROFILE, LatencyModel, LatencyProfile, StepShape
from shared.online_latency_model import PROFILED, UNPROFILED, OnlineLatencyModel, Trust

MODEL = LatencyModel(8.0, 0.04, 6e-5, 0.04, 2e-6)


def random_shape(draw: random.Random) -> StepShape:
    decodes, tokens = draw.randint(0, 200), draw.choice([0, draw.randint(1, 8192)])
    return StepShape(decodes, decodes * draw.randint(10, 4000), tokens, tokens * tokens / 2.0)


def test_online_model_follows_a_machine_that_is_twice_as_slow() -> None:
    online, draw = OnlineLatencyModel(MODEL), random.Random(2)
    for _ in range(3000):
        shape = random_shape(draw)
        online.observe(shape, 2.0 * MODEL.step_ms(shape) * draw.gauss(1.0, 0.02))
    shape = StepShape(64, 64_000, 512, 512 * 512 / 2.0)
    assert online.model.step_ms(shape) == pytest.approx(2.0 * MODEL.step_ms(shape), rel=0.05)


def test_one_outlier_hardly_moves_the_online_model() -> None:
    online = OnlineLatencyModel(MODEL)
    shape = StepShape(64, 64_000, 0, 0.0)
    online.observe(shape, 100.0 * MODEL.step_ms(shape))
    assert online.model.step_ms(shape) < 1.25 * MODEL.step_ms(shape)


@given(st.lists(st.floats(0.01, 1e5), max_size=60), st.integers(0, 2**16))
def test_online_coefficients_stay_in_bounds(times: list[float], seed: int) -> None:
    online, draw = OnlineLatencyModel(MODEL), random.Random(seed)
    for measured_ms in times:
        online.observe(random_shape(draw), measured_ms)
        for learned, prior in zip(online.model, MODEL, strict=True):
            assert 0.19 * prior <= learned <= 5.01 * prior


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("prior", "truth"),
    [
        (LatencyProfile.load().model, LatencyModel(3.0, 0.01, 2e-5, 0.01, 5e-7)),
        (LatencyProfile.load(CPU_DEMO_PROFILE).model, LatencyModel(40.0, 3.0, 1e-3, 1.5, 2e-4)),
    ],
)
def test_without_a_profile_the_model_of_this_machine_is_learned_in_some_dozen_steps(
    prior: LatencyModel, truth: LatencyModel, seed: int
) -> None:
    online, draw = OnlineLatencyModel(prior, UNPROFILED), random.Random(seed)
    errors = [
        abs(online.observe(shape, truth.step_ms(shape) * draw.lognormvariate(0.0, 0.03)))
        for shape in (random_shape(draw) for _ in range(140))
    ]
    assert errors[0] > 0.5
    assert statistics.median(errors[60:]) < 0.15


def test_a_coefficient_the_prior_lacks_is_learned_without_a_profile() -> None:
    online, draw = OnlineLatencyModel(MODEL._replace(attend_ms=0.0), UNPROFILED), random.Random(3)
    for _ in range(300):
        shape = random_shape(draw)
        online.observe(shape, MODEL.step_ms(shape))
    assert online.model.attend_ms == pytest.approx(MODEL.attend_ms, rel=0.2)


@pytest.mark.parametrize("seed", range(4))
def test_a_coefficient_at_its_bound_does_not_turn_corrections_of_the_others_around(
    seed: int,
) -> None:
    """Steps that scatter widely, and for long only a few decodes, whose number and context hardly
    differ: a model that has once come out too slow for them must not become slower yet."""
    draw, true = random.Random(seed), LatencyModel(4.0, 0.3, 3e-4, 0.08, 6e-5)
    online = OnlineLatencyModel(LatencyProfile.load(CPU_DEMO_PROFILE).model, UNPROFILED)
    decodes, too_slow = [(700, 200)], []
    for index in range(12_000):
        decodes = [(context + 1, left - 1) for context, left in decodes if left > 1]
        if len(decodes) < 6 and draw.random() < 0.02:
            decodes.append((draw.randint(20, 1500), draw.randint(10, 250)))
        prompt = draw.randint(16, 120) if index % 3000 < 1500 and draw.random() < 0.06 else 0
        context = sum(context for context, _ in decodes)
        shape = StepShape(len(decodes), context, prompt, prompt * (500.0 + 0.5 * prompt))
        scatter = draw.lognormvariate(0.0, 0.25) * (1.6 if index % 2000 > 1600 else 1.0)
        if draw.random() < 0.01:
            scatter *= draw.uniform(2.0, 20.0)
        if index > 1500 and not prompt:
            too_slow.append(online.model.step_ms(shape) / true.step_ms(shape))
        online.observe(shape, true.step_ms(shape) * scatter)
    assert max(too_slow) < 1.6
    assert statistics.median(too_slow) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("trust", [PROFILED, UNPROFILED])
def test_a_model_that_was_led_far_astray_comes_back(trust: Trust) -> None:
    """Seen on a GPU: 20 times too slow after an hour of odd steps, and so it stayed."""
    online, draw = OnlineLatencyModel(MODEL, trust), random.Random(5)
    decodes = StepShape(10, 10_000, 0, 0.0)
    for _ in range(3000):
        online.observe(decodes, 30.0 * MODEL.step_ms(decodes))
    for _ in range(3000):
        shape = random_shape(draw)
        online.observe(shape, MODEL.step_ms(shape) * draw.lognormvariate(0.0, 0.05))
    for shape in (random_shape(draw) for _ in range(50)):
        assert online.model.step_ms(shape) == pytest.approx(MODEL.step_ms(shape), rel=0.15)


@pytest.mark.parametrize("trust", [PROFILED, UNPROFILED])
def test_steps_that_wait_for_their_launch_tell_of_nothing_else(trust: Trust) -> None:
    """Thousands of steps with a few tokens of a prompt, each as long as its launch: those with many
    are predicted as before, and a small one by its launch."""
    online, draw = OnlineLatencyModel(MODEL, trust), random.Random(6)
    for _ in range(200):
        shape = random_shape(draw)
        online.observe(shape, MODEL.step_ms(shape))
    for index in range(6000):
        tokens = draw.randint(1, 60) if index % 4 else 0
        shape = StepShape(10, 12_000, tokens, 900.0 * tokens)
        said_ms = MODEL.step_ms(shape)
        took_ms = max(said_ms, 13.0 + draw.expovariate(0.3)) if tokens else said_ms
        online.observe(shape, took_ms * draw.lognormvariate(0.0, 0.02))
    for tokens in (400, 4000):
        shape = StepShape(10, 12_000, tokens, 0.5 * tokens * tokens)
        assert online.step_ms(shape) == pytest.approx(MODEL.step_ms(shape), rel=0.1)
    small = StepShape(10, 12_000, 8, 7200.0)
    assert 13.0 < online.step_ms(small) < 18.0
    assert online.step_ms(small._replace(prefill_tokens=0)) < 10.0


@given(st.lists(st.tuples(st.floats(0.01, 1e5), st.booleans()), max_size=80), st.integers(0, 2**16))
def test_whatever_is_measured_predictions_stay_finite_and_positive(
    times: list[tuple[float, bool]], seed: int
) -> None:
    online, draw = OnlineLatencyModel(MODEL, UNPROFILED), random.Random(seed)
    for measured_ms, small in times:
        online.observe(StepShape(1, 500, 3, 1500.0) if small else random_shape(draw), measured_ms)
        assert 0.0 < online.step_ms(random_shape(draw)) < 1e9
