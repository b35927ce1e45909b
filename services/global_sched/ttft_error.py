"""How far off predicted times to first token are: running quantiles of real over predicted.

Pure and bounded. Predictions are kept apart by size (a bin for each doubling), as what is added to
every request weighs more in short ones.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

SMALLEST_S = 1e-3
NUM_BINS = 20
"""Up to some 1000 s."""


class Correction(NamedTuple):
    """What to make of a prediction. ``is_near``: from predictions of this very size."""

    ratio: float
    is_near: bool


class _Bin:
    """``low``: the low quantile of the ratios; worked out when somebody asks after a new one."""

    __slots__ = ("is_new", "low", "ratios")

    def __init__(self, window: int) -> None:
        self.ratios: deque[float] = deque(maxlen=window)
        self.low: float | None = None
        self.is_new = False


class TtftError:
    """Ratios of the last ``window`` first tokens of each size of prediction.

    ``optimistic`` is the low quantile of a bin with ``min_samples``. A size without enough of its
    own borrows from the next smaller one that has, but never believes a prediction to be too low
    on that account: what is added to each request makes small ones look worse than large ones are.
    """

    def __init__(self, window: int = 64, min_samples: int = 8, quantile: float = 0.05) -> None:
        self._bins = [_Bin(window) for _ in range(NUM_BINS)]
        self._min_samples = min_samples
        self._quantile = quantile
        self._recent: deque[float] = deque(maxlen=4 * window)

    def observe(self, predicted_s: float, real_s: float) -> None:
        """A first token came."""
        ratio = max(real_s, 0.0) / max(predicted_s, SMALLEST_S)
        self._recent.append(ratio)
        seen = self._bins[_bin(predicted_s)]
        seen.ratios.append(ratio)
        seen.is_new = True

    def optimistic(self, predicted_s: float) -> Correction | None:
        """The factor that most first tokens stayed above; None: nothing is known yet."""
        own = _bin(predicted_s)
        for index in range(own, -1, -1):
            low = self._low(self._bins[index])
            if low is not None:
                return Correction(low, True) if index == own else Correction(min(low, 1.0), False)
        return None

    def _low(self, seen: _Bin) -> float | None:
        if seen.is_new and len(seen.ratios) >= self._min_samples:
            seen.low = _quantile(sorted(seen.ratios), self._quantile)
        seen.is_new = False
        return seen.low

    def quantile(self, share: float) -> float | None:
        """Of all ratios lately; for the metrics."""
        ordered = sorted(self._recent.copy())
        return _quantile(ordered, share) if ordered else None

    def reset(self) -> None:
        """Predictions are made in another way from now on."""
        self._recent.clear()
        for each in self._bins:
            each.ratios.clear()
            each.low, each.is_new = None, False


def _bin(predicted_s: float) -> int:
    doublings = math.log2(max(predicted_s, SMALLEST_S) / SMALLEST_S)
    return min(int(doublings), NUM_BINS - 1)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))]
