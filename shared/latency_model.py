"""How long one engine step takes: a linear model, its fit and its online correction.

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
    """
    features = np.array([(1.0, *shape) for shape in shapes], dtype=float)
    measured = np.asarray(step_ms, dtype=float)
    if len(measured) < features.shape[1]:
        raise ValueError(f"{len(measured)} steps cannot fit {features.shape[1]} coefficients")
    coefficients = _non_negative(features, measured, 1.0 / np.sqrt(measured))
    relative = np.abs(features @ coefficients - measured) / measured
    p50, p90, p99 = (float(value) for value in np.percentile(relative, [50, 90, 99]))
    return LatencyModel(*(float(c) for c in coefficients)), FitError(p50, p90, p99)


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


@dataclass(frozen=True, slots=True)
class Trust:
    """How far a running engine may lead the model away from its prior, and how fast."""

    bounds: tuple[float, float]
    """Coefficients stay within these times the prior."""
    prior_weight: float
    """The prior counts as much as about so many measured steps."""
    error: float
    """Relative error expected at first; steps far outside of it are clipped."""
    unseen: float
    """A coefficient of the prior below this share of a step's base may still grow to it."""


PROFILED = Trust(bounds=(0.2, 5.0), prior_weight=50.0, error=0.05, unseen=1e-3)
"""The prior was measured on this hardware: it leads, the engine corrects it."""
UNPROFILED = Trust(bounds=(1e-3, 1e3), prior_weight=0.01, error=10.0, unseen=0.1)
"""The prior is some other machine's: all but forgotten after some dozen steps."""


# Counts of a step in which every part of it takes about as long as its base.
_TYPICAL = (1.0, 64.0, 65536.0, 1024.0, 1048576.0)
_MOST_GROWTH = 5.0
ERROR_RATE = 0.02


class OnlineLatencyModel:
    """Recursive least squares with forgetting, clipped, around a prior.

    Invariant: coefficients stay within ``trust.bounds`` times the prior, and one outlier (a hiccup
    of the host) moves the model no more than a step ``clip`` times the usual error would.

    It runs in every engine step. On five numbers plain Python is several times faster than NumPy.
    """

    def __init__(
        self,
        prior: LatencyModel,
        trust: Trust = PROFILED,
        *,
        forgetting: float = 0.999,
        clip: float = 4.0,
    ) -> None:
        self.model = prior
        self.error = trust.error  # running mean of the relative error
        self._seen = trust.prior_weight
        self._forgetting = forgetting
        self._clip = clip
        least_ms = max(prior.base_ms, 1e-3) * trust.unseen
        # Coefficients are learned in units of their own prior, so that all can move alike.
        self._units = [max(c, least_ms / n) for c, n in zip(prior, _TYPICAL, strict=True)]
        self._theta = [c / unit for c, unit in zip(prior, self._units, strict=True)]
        self._low = [trust.bounds[0] * value for value in self._theta]
        self._high = trust.bounds[1]
        first = 1.0 / trust.prior_weight
        self._covariance = [[first * (i == j) for j in range(5)] for i in range(5)]
        self._most_trace = _MOST_GROWTH * 5 * first

    def observe(self, shape: StepShape, measured_ms: float) -> float:
        """Learn from one measured step; returns its relative error before learning."""
        predicted = self.model.step_ms(shape)
        relative = (measured_ms - predicted) / max(predicted, 1e-6)
        limit = max(self._clip * self.error, 0.02)
        clipped = min(limit, max(-limit, relative))
        # Clipped here too: else one hiccup would widen the band for the next.
        self._seen += 1.0
        rate = max(ERROR_RATE, 1.0 / self._seen)
        self.error += rate * (abs(clipped) - self.error)
        # In units of the time as predicted or, where that was far too short, as measured (clipped):
        # the recursion minimises relative error, and a prior far too fast does not look certain.
        unit = 1.0 + max(clipped, 0.0)
        self._update(shape, max(predicted, 1e-6) * unit, clipped / unit)
        return relative

    def _update(self, shape: StepShape, unit_ms: float, relative: float) -> None:
        units = self._units
        x0, x1, x2, x3, x4 = (
            units[0] / unit_ms,
            units[1] * shape[0] / unit_ms,
            units[2] * shape[1] / unit_ms,
            units[3] * shape[2] / unit_ms,
            units[4] * shape[3] / unit_ms,
        )
        direction = [
            row[0] * x0 + row[1] * x1 + row[2] * x2 + row[3] * x3 + row[4] * x4
            for row in self._covariance
        ]
        d0, d1, d2, d3, d4 = direction
        known = self._forgetting + d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3 + d4 * x4
        step = relative / known
        self._theta = [value + step * d for value, d in zip(self._theta, direction, strict=True)]
        self._widen_elsewhere(direction, known)
        self._keep_within_bounds()
        self.model = LatencyModel(*[v * unit for v, unit in zip(self._theta, units, strict=True)])

    def _keep_within_bounds(self) -> None:
        """What a coefficient must not take, those it is confused with take: where it alone were cut
        off, the correction of a step would be undone in part, or turned into its opposite."""
        high, bounds = self._high, self._low
        for _ in range(3):
            theta, beyond = self._theta, False
            for index, low in enumerate(bounds):
                value = theta[index]
                if low <= value <= high:
                    continue
                beyond = True
                row = self._covariance[index]
                share = (value - (low if value < low else high)) / row[index]
                theta = [value - share * c for value, c in zip(theta, row, strict=True)]
            self._theta = theta
            if not beyond:
                return
        self._theta = [
            min(high, max(low, value)) for value, low in zip(self._theta, bounds, strict=True)
        ]

    def _widen_elsewhere(self, direction: list[float], known: float) -> None:
        """Certainty grows along what was seen and is slowly forgotten in every direction."""
        d0, d1, d2, d3, d4 = direction
        fade = 1.0 / self._forgetting
        covariance = []
        for row, d in zip(self._covariance, direction, strict=True):
            gain = d / known
            covariance.append(
                [
                    (row[0] - gain * d0) * fade,
                    (row[1] - gain * d1) * fade,
                    (row[2] - gain * d2) * fade,
                    (row[3] - gain * d3) * fade,
                    (row[4] - gain * d4) * fade,
                ]
            )
        # Directions that are not excited must not grow without end.
        if sum(covariance[i][i] for i in range(5)) <= self._most_trace:
            self._covariance = covariance
