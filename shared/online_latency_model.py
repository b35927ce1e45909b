"""The latency model of a running engine: `LatencyModel`, corrected by every step it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shared.latency_model import LAUNCH, LEAST_PART, LatencyModel, StepShape


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
