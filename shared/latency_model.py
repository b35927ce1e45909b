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
    what they tell is how long their launch takes (see `OnlineLatencyModel`).
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


@dataclass(frozen=True, slots=True)
class Trust:
    """How far a running engine may lead the model away from its prior, and how fast."""

    bounds: tuple[float, float]
    """Coefficients stay within these times the prior, at the prior's scale."""
    prior_weight: float
    """The prior counts as much as so many measured steps that were of one coefficient alone."""
    error: float
    """Relative error expected at first; steps far outside of it count little."""
    unseen: float
    """A coefficient of the prior below this share of a step's base may still grow to it."""
    scale_known: bool = True
    """False: only the prior's proportions are held to, and how fast the machine is is learned."""


PROFILED = Trust(bounds=(0.2, 5.0), prior_weight=10.0, error=0.05, unseen=1e-3)
"""The prior was measured on this hardware: it leads, the engine corrects it."""
UNPROFILED = Trust(bounds=(0.02, 50.0), prior_weight=0.1, error=10.0, unseen=0.1, scale_known=False)
"""The prior is some other machine's: its proportions are a guess, its speed not even that."""


# Counts of a step in which every part of it takes about as long as its base.
_TYPICAL = (1.0, 64.0, 65536.0, 1024.0, 1048576.0)
ERROR_RATE = 0.02
SCALE_RATE = 0.01
SCALES = (1e-4, 1e4)
"""Of one machine against another."""
SOLVED_EVERY = 8
"""Steps, once as many as `SOLVED_AT_ONCE` are known: one more then changes next to nothing."""
SOLVED_AT_ONCE = 64
UNSEEN_WEIGHT = 0.01
"""Of a coefficient the prior lacks, in prior weights: next to nothing is known of it."""
LAUNCH_RATE, LAUNCH_CLIP = 0.05, 0.5
LAUNCH_SEEN = 16
"""So many small steps are waited for before their mean says anything."""
TOO_LONG = 0.6
"""Of its prediction: a step so much shorter shows that the model is wrong, whatever its size."""
NEAR = 2.0
"""Times: a prediction and what was measured."""
LEAST_TIME = 0.2
"""Of what the scaled prior says: no step is shorter, such a clock is wrong."""


class OnlineLatencyModel:
    """Least squares over the measured steps, the older the less, held to a prior.

    Minimises, over coefficients in units of their own prior, with ``scale`` 1 or learned,

        sum of forgetting^age * weight * ((measured - predicted) / told)^2
        + prior_weight * sum of (coefficient / scale - 1)^2

    ``weight`` is that of Huber: steps far outside of the usual error, hiccups of the host, count
    little. ``told`` is what was measured, or between that and the prediction where the two are
    near (where steps scatter, either alone would be biased): so errors hardly depend on the model's
    own state, and it comes back from wherever it was led. The prior's term is never forgotten, so
    what the steps do not show (large prompts, while only small ones come) stays in proportion.

    Beside that, the least time of a step with prompts: engines run decodes alone as one captured
    graph and launch the parts of other steps one by one, for which the device waits if it has
    little to do. That is no term of a sum: a step that takes longer hides it.

    It runs in every engine step.
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
        self.launch_ms = 0.0
        """The least time of a step with prompts, 0 where they are not seen to wait for it."""
        self._num_small = 0
        self._small_ms = self._small_linear_ms = 0.0
        self._trust = trust
        self._num_steps = 0
        self._forgetting = forgetting
        self._clip = clip
        least_ms = max(prior.base_ms, 1e-3) * trust.unseen
        # Coefficients are learned in units of their own prior, so that all can move alike.
        self._units = np.array(
            [max(c, least_ms / n) for c, n in zip(prior, _TYPICAL, strict=True)], dtype=float
        )
        self._center = np.asarray(prior, dtype=float) / self._units
        self._held = np.where(self._center < 1.0, UNSEEN_WEIGHT, 1.0) * trust.prior_weight
        self._log_scale = 0.0
        self._gram = np.zeros((5, 5))
        self._moment = np.zeros(5)

    def observe(self, shape: StepShape, measured_ms: float) -> float:
        """Learn from one measured step; returns its relative error before learning."""
        linear_ms, predicted_ms = self.model.step_ms(shape), self.step_ms(shape)
        if not self._waited_for_launch(shape, linear_ms, measured_ms):
            self._learn(shape, linear_ms, measured_ms)
        return (measured_ms - predicted_ms) / max(predicted_ms, 1e-6)

    def step_ms(self, shape: StepShape) -> float:
        """What the step will take, its launch included."""
        linear_ms = self.model.step_ms(shape)
        return max(linear_ms, self.launch_ms) if shape[2] else linear_ms

    def _waited_for_launch(self, shape: StepShape, linear_ms: float, measured_ms: float) -> bool:
        """True for a step too small for its time to tell of the linear model.

        Whether measured time is above or below the prediction must not decide alone: a model that
        learns from errors of one sign drifts.
        """
        if not shape[2]:
            return False
        decode_ms = self.model.decode_step_ms(shape[0], shape[1])
        small = linear_ms - decode_ms < LEAST_PART * decode_ms
        if small:
            self._follow_launch(linear_ms, measured_ms)
        if self.launch_ms == 0.0 or measured_ms < TOO_LONG * linear_ms:
            return False
        return small or linear_ms < self.launch_ms

    def _follow_launch(self, linear_ms: float, measured_ms: float) -> None:
        """What small steps take, and what the linear model says they do, in the mean."""
        self._num_small += 1
        rate = max(LAUNCH_RATE, 1.0 / self._num_small)
        known_ms = self._small_ms or measured_ms
        most_ms = LAUNCH_CLIP * known_ms
        change_ms = min(most_ms, max(-most_ms, measured_ms - known_ms))
        self._small_ms = known_ms + rate * change_ms
        self._small_linear_ms += rate * (linear_ms - self._small_linear_ms)
        waits = self._small_ms > LAUNCH * self._small_linear_ms
        self.launch_ms = self._small_ms if waits and self._num_small >= LAUNCH_SEEN else 0.0

    def _learn(self, shape: StepShape, predicted_ms: float, measured_ms: float) -> None:
        parts_ms = self._units * (1.0, *shape)
        measured_ms = max(measured_ms, LEAST_TIME * self._scale * float(parts_ms.sum()), 1e-6)
        self._num_steps += 1
        if not self._trust.scale_known:
            self._follow_scale(measured_ms / float(parts_ms.sum()))
        told_ms = measured_ms * math.sqrt(min(NEAR, max(1.0 / NEAR, predicted_ms / measured_ms)))
        error = abs(measured_ms - predicted_ms) / told_ms
        limit = max(self._clip * self.error, 0.02)
        weight = min(1.0, limit / max(error, 1e-9))
        # Clipped here too: else one hiccup would widen the band for the next.
        rate = max(ERROR_RATE, 1.0 / (self._num_steps + self._trust.prior_weight))
        self.error += rate * (min(error, limit) - self.error)
        shares = parts_ms / told_ms
        weighted = weight * shares
        self._gram *= self._forgetting
        self._gram += weighted[:, None] * shares
        self._moment *= self._forgetting
        self._moment += weighted * (measured_ms / told_ms)
        if self._num_steps <= SOLVED_AT_ONCE or self._num_steps % SOLVED_EVERY == 0:
            self._solve()

    @property
    def _scale(self) -> float:
        return math.exp(self._log_scale)

    def _follow_scale(self, ratio: float) -> None:
        """The mean of the logarithms: one hiccup changes it little."""
        rate = max(SCALE_RATE, 1.0 / self._num_steps)
        low, high = SCALES
        told = math.log(min(max(ratio, low), high))
        self._log_scale += rate * (told - self._log_scale)

    def _solve(self) -> None:
        """The coefficients; one that would leave its bounds is set there, the others made anew."""
        scale, trust = self._scale, self._trust
        held = self._held / (scale * scale)
        matrix = self._gram + np.diag(held)
        target = self._moment + held * scale * self._center
        low, high = trust.bounds[0] * scale, trust.bounds[1] * scale
        theta = np.linalg.solve(matrix, target)
        free = np.ones(5, dtype=bool)
        for _ in range(5):
            outside = free & ((theta < low) | (theta > high))
            if not outside.any():
                break
            theta[outside] = np.clip(theta[outside], low, high)
            free &= ~outside
            rest = target[free] - matrix[np.ix_(free, ~free)] @ theta[~free]
            theta[free] = np.linalg.solve(matrix[np.ix_(free, free)], rest)
        self.model = LatencyModel(*(theta * self._units).tolist())
