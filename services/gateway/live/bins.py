"""Counts of durations in bins of equal ratio: small, mergeable, good for quantiles. Pure."""

import math
from collections import Counter
from collections.abc import Iterable

from shared.schemas.live import Distribution

FIRST_EDGE_S = 1e-3
PER_DECADE = 16
NUM_BINS = 5 * PER_DECADE
RATIO = 10 ** (1 / PER_DECADE)

Bins = Counter[int]
"""Bin -> count. Shorter durations are in bin 0, longer than 100 s in the last."""


def bin_of(seconds: float) -> int:
    if seconds <= FIRST_EDGE_S:
        return 0
    return min(NUM_BINS - 1, int(math.log10(seconds / FIRST_EDGE_S) * PER_DECADE))


def merge(several: Iterable[Bins]) -> Bins:
    total: Bins = Counter()
    for one in several:
        total.update(one)
    return total


def quantile(bins: Bins, share: float) -> float | None:
    """Inside the bin by interpolation, so within ``RATIO`` of the truth; None without a count."""
    left = share * bins.total()
    if not left:
        return None
    for index in sorted(bins):
        count = bins[index]
        if left <= count:
            return float(FIRST_EDGE_S * RATIO ** (index + left / count))
        left -= count
    return float(FIRST_EDGE_S * RATIO**NUM_BINS)


def distribution(bins: Bins, num_beyond: int = 0) -> Distribution:
    """From the first bin that holds anything to the last."""
    first, last = min(bins, default=0), max(bins, default=-1)
    return Distribution(
        first_edge_s=FIRST_EDGE_S * RATIO**first,
        ratio=RATIO,
        counts=[bins[index] for index in range(first, last + 1)],
        num_beyond=num_beyond,
        p50_s=quantile(bins, 0.5),
        p99_s=quantile(bins, 0.99),
    )
