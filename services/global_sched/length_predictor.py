"""Output-length prediction: running quantiles per model and traffic class.

Pure state machine: ``observe`` finished requests, ``predict`` new ones. Nothing seen yet: a broad
prior. A prediction never exceeds the request's max_tokens.
"""

from __future__ import annotations

from collections import deque

from services.global_sched.policy.views import LengthQuantiles

Kind = tuple[str, str]
"""Model and traffic class."""

PRIOR_TOKENS = (32.0, 128.0, 512.0, 200.0)


class LengthPredictor:
    """Quantiles over the last ``window`` finished requests of each model and traffic class.

    They are recomputed every ``refresh`` observations, so a prediction costs a dictionary look-up.
    ``error`` is the running mean of |predicted p50 - actual| / actual, per model and class;
    ``over_p90`` the running share of requests longer than their predicted p90 (0.1 when right).
    Classes and models must come from bounded sets.
    """

    def __init__(self, window: int = 512, refresh: int = 16, min_samples: int = 16) -> None:
        self._window = window
        self._refresh = refresh
        self._min_samples = min_samples
        self._lengths: dict[Kind, deque[int]] = {}
        self._seen: dict[Kind, int] = {}
        self._quantiles: dict[Kind, LengthQuantiles] = {}
        self.error: dict[Kind, float] = {}
        self.over_p90: dict[Kind, float] = {}

    def predict(self, traffic_class: str, max_tokens: int, model: str = "") -> LengthQuantiles:
        known = self._quantiles.get((model, traffic_class))
        p10, p50, p90, mean = known if known else PRIOR_TOKENS
        most = float(max(max_tokens, 1))
        return LengthQuantiles(min(p10, most), min(p50, most), min(p90, most), min(mean, most))

    def observe(self, traffic_class: str, output_tokens: int, model: str = "") -> None:
        kind = (model, traffic_class)
        self._score(kind, output_tokens)
        lengths = self._lengths.setdefault(kind, deque(maxlen=self._window))
        lengths.append(output_tokens)
        seen = self._seen.get(kind, 0) + 1
        self._seen[kind] = seen
        if seen >= self._min_samples and seen % self._refresh == 0:
            self._quantiles[kind] = _quantiles(sorted(lengths))

    def _score(self, kind: Kind, output_tokens: int) -> None:
        known = self._quantiles.get(kind)
        if known is None:
            return
        error = abs(known.p50 - output_tokens) / max(output_tokens, 1)
        _follow(self.error, kind, error, error)
        _follow(self.over_p90, kind, float(output_tokens > known.p90), 0.1)


def _follow(means: dict[Kind, float], kind: Kind, value: float, at_first: float) -> None:
    before = means.get(kind, at_first)
    means[kind] = before + 0.02 * (value - before)


def _quantiles(ordered: list[int]) -> LengthQuantiles:
    last = len(ordered) - 1
    p10, p50, p90 = (float(ordered[round(last * q)]) for q in (0.1, 0.5, 0.9))
    return LengthQuantiles(p10, p50, p90, sum(ordered) / len(ordered))
