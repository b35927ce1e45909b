"""What an instance shows of its steps."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from services.gpu_instance import metrics
from services.gpu_instance.engine.seam import EngineLoad
from shared.actor import Actor
from shared.bus_memory import MemoryBus

IDLE = EngineLoad(
    num_running=0,
    num_waiting=0,
    num_decodes=0,
    context_sum=0,
    outstanding_prefill_tokens=0,
    free_blocks=10,
    num_blocks=10,
    max_num_batched_tokens=64,
)


@pytest.mark.parametrize(("real_s", "error_s"), [(0.03, 0.01), (0.005, -0.015)])
def test_the_error_of_a_predicted_step_keeps_its_sign(
    monkeypatch: pytest.MonkeyPatch, real_s: float, error_s: float
) -> None:
    recorded: list[float] = []
    monkeypatch.setattr(metrics, "_step_error", SimpleNamespace(record=recorded.append))
    meter = metrics.LoadMeter(Actor("test", MemoryBus()))
    meter.update(replace(IDLE, num_steps=1, step_s=real_s, predicted_step_s=0.02))
    assert recorded == [pytest.approx(error_s)]
