"""Output-length prediction: running quantiles per model and traffic class.

Pure state machine: ``observe`` finished requests, ``predict`` new ones. Nothing seen yet: a broad
prior. A prediction never exceeds the request's max_tokens.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

from services.global_sched.policy.views import LengthQuantiles

Kind = tuple[str, str]
"""Model and traffic class."""

PRIOR = LengthQuantiles(32.0, 128.0, 512.0, 200.0)


class _Lengths:
    """The last ``window`` output lengths, in order of arrival and of size."""

    __slots__ = ("_arrived", "_ordered", "_sum", "_window", "seen")

    def __init__(self, window: int) -> None:
        self._window = window
        self._arrived: deque[int] = deque()
        self._ordered: list[int] = []
        self._sum = 0
        self.seen = 0

    def add(self, tokens: int) -> None:
        if len(self._arrived) == self._window:
            oldest = self._arrived.popleft()
            del self._ordered[bisect_left(self._ordered, oldest)]
            self._sum -= oldest
        self._arrived.append(tokens)
        insort(self._ordered, tokens)
        self._sum += tokens
        self.seen += 1

    def quantiles(self) -> LengthQuantiles:
        ordered = self._ordered
        last = len(ordered) - 1
        p10, p50, p90 = (float(ordered[round(last * q)]) for q in (0.1, 0.5, 0.9))
        return LengthQuantiles(p10, p50, p90, self._sum / len(ordered))


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
        self._lengths: dict[Kind, _Lengths] = {}
        self._quantiles: dict[Kind, LengthQuantiles] = {}
        self.error: dict[Kind, float] = {}
        self.over_p90: dict[Kind, float] = {}

    def predict(self, traffic_class: str, max_tokens: int, model: str = "") -> LengthQuantiles:
        p10, p50, p90, mean = known = self._quantiles.get((model, traffic_class), PRIOR)
        most = float(max(max_tokens, 1))
        if p90 <= most and mean <= most:
            return known
        return LengthQuantiles(min(p10, most), min(p50, most), min(p90, most), min(mean, most))

    def observe(self, traffic_class: str, output_tokens: int, model: str = "") -> None:
        kind = (model, traffic_class)
        self._score(kind, output_tokens)
        lengths = self._lengths.get(kind)
        if lengths is None:
            lengths = self._lengths[kind] = _Lengths(self._window)
        lengths.add(output_tokens)
        if lengths.seen >= self._min_samples and lengths.seen % self._refresh == 0:
            self._quantiles[kind] = lengths.quantiles()

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
