"""Output-length prediction: running quantiles per model and traffic class.

Pure state machine: ``observe`` finished requests, ``predict`` new ones. Nothing seen yet: a broad
prior. A prediction never exceeds the request's max_tokens.
"""

from __future__ import annotations

from collections import deque

from services.global_sched.policy.views import LengthQuantiles

PRIOR_TOKENS = (32.0, 128.0, 512.0, 200.0)


class LengthPredictor:
    """Quantiles over the last ``window`` finished requests of each traffic class.

    They are recomputed every ``refresh`` observations, so a prediction costs a dictionary look-up.
    ``error`` is the running mean of |predicted p50 - actual| / actual, per class.
    """

    def __init__(self, window: int = 512, refresh: int = 16, min_samples: int = 16) -> None:
        self._window = window
        self._refresh = refresh
        self._min_samples = min_samples
        self._lengths: dict[str, deque[int]] = {}
        self._seen: dict[str, int] = {}
        self._quantiles: dict[str, LengthQuantiles] = {}
        self.error: dict[str, float] = {}

    def predict(self, traffic_class: str, max_tokens: int) -> LengthQuantiles:
        known = self._quantiles.get(traffic_class)
        p10, p50, p90, mean = known if known else PRIOR_TOKENS
        most = float(max(max_tokens, 1))
        return LengthQuantiles(min(p10, most), min(p50, most), min(p90, most), min(mean, most))

    def observe(self, traffic_class: str, output_tokens: int) -> None:
        self._score(traffic_class, output_tokens)
        lengths = self._lengths.setdefault(traffic_class, deque(maxlen=self._window))
        lengths.append(output_tokens)
        seen = self._seen.get(traffic_class, 0) + 1
        self._seen[traffic_class] = seen
        if seen >= self._min_samples and seen % self._refresh == 0:
            self._quantiles[traffic_class] = _quantiles(sorted(lengths))

    def _score(self, traffic_class: str, output_tokens: int) -> None:
        known = self._quantiles.get(traffic_class)
        if known is None:
            return
        error = abs(known.p50 - output_tokens) / max(output_tokens, 1)
        before = self.error.get(traffic_class, error)
        self.error[traffic_class] = before + 0.02 * (error - before)


def _quantiles(ordered: list[int]) -> LengthQuantiles:
    last = len(ordered) - 1
    p10, p50, p90 = (float(ordered[round(last * q)]) for q in (0.1, 0.5, 0.9))
    return LengthQuantiles(p10, p50, p90, sum(ordered) / len(ordered))
