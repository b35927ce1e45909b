"""A simulated engine follows the flags that an instance has for any engine."""

from pathlib import Path

import pytest

from services.gpu_instance.__main__ import build_engine
from services.gpu_instance.engine.simulated import SimulatedEngine
from services.gpu_instance.settings import read_settings
from shared.latency_model import CPU_DEMO_PROFILE, LatencyProfile


async def built(*flags: str) -> SimulatedEngine:
    engine = build_engine(read_settings(("the-model", "--engine", "simulated", *flags)))
    assert isinstance(engine, SimulatedEngine)
    return engine


@pytest.mark.parametrize("mode", ["slo", "static:512"])
async def test_the_batcher_mode_of_the_instance_is_the_engines(mode: str) -> None:
    engine = await built("--batcher", mode, "--num-blocks", "64")
    assert engine.batcher.mode == mode
    assert (engine.settings.model, engine.settings.num_blocks) == ("the-model", 64)


async def test_steps_take_as_long_as_the_latency_profile_given_says(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(CPU_DEMO_PROFILE.read_text())
    engine = await built("--latency-profile", str(profile))
    assert engine.batcher.model == LatencyProfile.load(CPU_DEMO_PROFILE).model
