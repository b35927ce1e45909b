"""From timed steps to a profile."""

import platform
from importlib.metadata import version

from shared.latency_model import LatencyProfile, StepShape, fit
from shared.schemas.registry import InstanceRecord
from shared.schemas.segment import TimedStep

OUTLIER_PERCENT = 1.0
"""The slowest steps are hiccups of the host (a garbage collection, another process)."""


def make_profile(record: InstanceRecord, steps: list[TimedStep]) -> LatencyProfile:
    """Fit all but the slowest steps; raises ValueError with too few of them."""
    kept = _without_hiccups(steps)
    model, error = fit([_shape(step) for step in kept], [1e3 * step.step_s for step in kept])
    return LatencyProfile(
        model=model,
        error=error,
        num_steps=len(kept),
        hardware=record.device,
        model_name=record.geometry.model,
        versions={
            "vllm": record.geometry.vllm_version,
            "torch": version("torch"),
            "python": platform.python_version(),
        },
        source="dynaserve profile",
    )


def _without_hiccups(steps: list[TimedStep]) -> list[TimedStep]:
    """Drop the steps that a first fit cannot explain because they took far too long."""
    rough, _error = fit([_shape(step) for step in steps], [1e3 * step.step_s for step in steps])
    excess = sorted(steps, key=lambda s: 1e3 * s.step_s / max(rough.step_ms(_shape(s)), 1e-6))
    return excess[: len(steps) - int(len(steps) * OUTLIER_PERCENT / 100.0)]


def _shape(step: TimedStep) -> StepShape:
    return StepShape(
        step.num_decodes,
        step.decode_context_tokens,
        step.prefill_tokens,
        step.prefill_context_tokens2,
    )
