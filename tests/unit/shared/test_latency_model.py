"""The latency model: fit and inversion."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.latency_model import LatencyModel, LatencyProfile, StepShape, fit

MODEL = LatencyModel(8.0, 0.04, 6e-5, 0.04, 2e-6)


def random_shape(draw: random.Random) -> StepShape:
    decodes, tokens = draw.randint(0, 200), draw.choice([0, draw.randint(1, 8192)])
    return StepShape(decodes, decodes * draw.randint(10, 4000), tokens, tokens * tokens / 2.0)


def test_fit_finds_the_coefficients_steps_were_made_from() -> None:
    draw = random.Random(1)
    shapes = [random_shape(draw) for _ in range(200)]
    found, error = fit(shapes, [MODEL.step_ms(shape) for shape in shapes])
    assert found == pytest.approx(MODEL, rel=1e-6)
    assert error.p99 < 1e-6


def test_fit_keeps_coefficients_non_negative() -> None:
    shapes = [StepShape(n, 100 * n, 0, 0.0) for n in range(1, 40)]
    found, _ = fit(shapes, [20.0 - 0.1 * shape.num_decodes for shape in shapes])
    assert min(found) >= 0.0


def test_fit_refuses_fewer_steps_than_coefficients() -> None:
    with pytest.raises(ValueError, match="cannot fit"):
        fit([StepShape(1, 1, 0, 0.0)], [1.0])


def test_profile_survives_json() -> None:
    profile = LatencyProfile.load()
    assert LatencyProfile.from_json(profile.to_json()) == profile


@given(st.floats(0.0, 500.0), st.integers(0, 100_000))
def test_prefill_tokens_fit_the_room_and_one_more_would_not(room_ms: float, context: int) -> None:
    tokens = MODEL.prefill_tokens_in(room_ms, context)
    assert MODEL.prompt_ms(tokens, context) <= room_ms + 1e-6
    assert MODEL.prompt_ms(tokens + 1, context) > room_ms - 1e-6
