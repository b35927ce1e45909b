"""How long one engine step takes: a linear model and its fit; `online_latency_model` corrects it.

    step_ms = base + decode * num_decodes + context * sum(decode contexts)
            + prefill * num_prefill_tokens + attend * sum(prefill tokens x their context)

Times are milliseconds, counts are tokens. A prefill chunk of n tokens that starts at context x
adds n*x + n*n/2 to the last sum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DEFAULT_PROFILE = Path(__file__).parent / "profiles" / "h200_qwen14b.json"
CPU_DEMO_PROFILE = Path(__file__).parent / "profiles" / "cpu_demo.json"

TYPICAL_CONTEXT_TOKENS = 1024
"""Where a prompt's own context is not known, its tokens are taken to attend to so many."""

LEAST_PART = 0.5
"""Of the time of a step's decodes: prompts that take less tell nothing of what prompts cost."""
LAUNCH = 1.1
"""Steps with so little of a prompt wait for their launch where they take so much longer than
predicted, in the mean: scatter alone lengthens none of the mean."""


class StepShape(NamedTuple):
    """What one engine step computed."""

    num_decodes: int
    decode_context_tokens: int
    prefill_tokens: int
    prefill_context_tokens2: float


class LatencyModel(NamedTuple):
    """The five coefficients, milliseconds per unit. Immutable: a correction makes a new one."""

    base_ms: float
    decode_ms: float
    context_ms: float
    prefill_ms: float
    attend_ms: float

    def step_ms(self, shape: tuple[int, int, int, float]) -> float:
        """Of a `StepShape`, or the same as a plain tuple."""
        base_ms, decode_ms, context_ms, prefill_ms, attend_ms = self
        return (
            base_ms
            + decode_ms * shape[0]
            + context_ms * shape[1]
            + prefill_ms * shape[2]
            + attend_ms * shape[3]
        )

    def decode_step_ms(self, num_decodes: int, decode_context_tokens: int) -> float:
        """A step without prefill."""
        base_ms, decode_ms, context_ms, _, _ = self
        return base_ms + decode_ms * num_decodes + context_ms * decode_context_tokens

    def prefill_tokens_in(self, room_ms: float, context_tokens: int) -> int:
        """The most prefill tokens of one prompt, from ``context_tokens`` on, within ``room_ms``."""
        if room_ms <= 0.0:
            return 0
        if room_ms == math.inf:
            return 1 << 30
        _, _, _, prefill_ms, attend_ms = self
        linear = prefill_ms + attend_ms * context_tokens
        half = 0.5 * attend_ms
        # The smaller root of half*n^2 + linear*n = room, in the form that survives half = 0.
        root = linear + math.sqrt(linear * linear + 4.0 * half * room_ms)
        return int(2.0 * room_ms / root) if root > 0.0 else 1 << 30

    def prompt_ms(self, tokens: int, context_tokens: int) -> float:
        """Marginal time of prefilling ``tokens`` from ``context_tokens`` on, without step bases."""
        _, _, _, prefill_ms, attend_ms = self
        return tokens * (prefill_ms + attend_ms * (context_tokens + 0.5 * tokens))


class FitError(NamedTuple):
    """Relative error of a fit over the steps it was made from."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """A fitted model with where it came from."""

    model: LatencyModel
    error: FitError
    num_steps: int
    hardware: str
    model_name: str
    versions: dict[str, str]
    source: str

    def to_json(self) -> str:
        body = asdict(self) | {"model": self.model._asdict(), "error": self.error._asdict()}
        return json.dumps(body, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> LatencyProfile:
        body = json.loads(text)
        body["model"] = LatencyModel(**body["model"])
        body["error"] = FitError(**body["error"])
        return LatencyProfile(**body)

    @staticmethod
    def load(path: Path = DEFAULT_PROFILE) -> LatencyProfile:
        return LatencyProfile.from_json(path.read_text())


def fit(shapes: Sequence[StepShape], step_ms: Sequence[float]) -> tuple[LatencyModel, FitError]:
    """Least squares with weight 1/sqrt(time), coefficients kept non-negative.

    The weight stands between absolute error (long prefill steps rule) and relative error (short
    decode steps rule). A coefficient that would go negative is set to zero and the rest refitted.
    Steps with little of a prompt are left out where they take clearly longer than the others say:
    what they tell is how long their launch takes (see `online_latency_model`).
    """
    features = np.array([(1.0, *shape) for shape in shapes], dtype=float)
    measured = np.asarray(step_ms, dtype=float)
    if len(measured) < features.shape[1]:
        raise ValueError(f"{len(measured)} steps cannot fit {features.shape[1]} coefficients")
    coefficients = _non_negative(features, measured, 1.0 / np.sqrt(measured))
    small = _little_prompt(features, coefficients)
    others = features[~small], measured[~small]
    if small.any() and len(others[1]) >= 2 * features.shape[1]:
        without = _non_negative(*others, 1.0 / np.sqrt(others[1]))
        if measured[small].mean() > LAUNCH * (features[small] @ without).mean():
            coefficients, (features, measured) = without, others
    relative = np.abs(features @ coefficients - measured) / measured
    p50, p90, p99 = (float(value) for value in np.percentile(relative, [50, 90, 99]))
    return LatencyModel(*(float(c) for c in coefficients)), FitError(p50, p90, p99)


def _little_prompt(
    features: NDArray[np.float64], coefficients: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which steps compute prompts that take less than `LEAST_PART` of the rest."""
    parts = features * coefficients
    prompts, rest = parts[:, 3:].sum(axis=1), parts[:, :3].sum(axis=1)
    little: NDArray[np.bool_] = (features[:, 3] > 0.0) & (prompts < LEAST_PART * rest)
    return little


def _non_negative(
    features: NDArray[np.float64], measured: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    active = np.abs(features).max(axis=0) > 0.0
    while True:
        columns = features[:, active] * weights[:, None]
        scale = np.linalg.norm(columns, axis=0)
        solved, *_ = np.linalg.lstsq(columns / scale, measured * weights, rcond=None)
        if (solved >= 0.0).all():
            coefficients = np.zeros(features.shape[1])
            coefficients[active] = solved / scale
            return coefficients
        active[np.flatnonzero(active)[int(np.argmin(solved))]] = False
