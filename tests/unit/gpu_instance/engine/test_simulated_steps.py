"""How long simulated steps take."""

import pytest

from services.gpu_instance.engine.simulated import SimulatedEngine
from services.gpu_instance.engine.simulated_settings import SimulationSettings
from shared.latency_model import StepShape


async def test_a_slowed_engine_takes_longer_than_its_profile_says() -> None:
    shape = StepShape(4, 1000, 0, 0.0)
    usual, slowed = (
        SimulatedEngine(SimulationSettings(slowdown=slowdown)).steps.step_s(shape)
        for slowdown in (1.0, 10.0)
    )
    assert slowed == pytest.approx(10 * usual)
