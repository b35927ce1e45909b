"""Ratios of two servers' figures, paired by round. Pure."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import TypedDict

from benchmarks.overhead.measure import Level

FIGURES = (
    "ttft_mean_ms",
    "ttft_median_ms",
    "tpot_mean_ms",
    "tpot_median_ms",
    "e2el_mean_ms",
    "output_tokens_s",
)


class Spread(TypedDict):
    """A ratio, second server to first, over ``rounds`` pairs.

    A pair whose first figure is 0 (a host so busy that all tokens came in one read) is left out.
    """

    median: float
    mean: float
    standard_error: float
    lowest: float
    highest: float
    rounds: int


Rounds = Sequence[Sequence[Level]]
"""Of one server: per round, one level per concurrency."""


def ratios(first: Rounds, second: Rounds) -> dict[int, dict[str, Spread]]:
    """concurrency -> figure -> second / first; each round's pair ran in the same minutes."""
    return {
        level.concurrency: {
            name: _spread(
                [getattr(a[number], name) for a in first],
                [getattr(b[number], name) for b in second],
            )
            for name in FIGURES
        }
        for number, level in enumerate(first[0])
    }


def _spread(first: Sequence[float], second: Sequence[float]) -> Spread:
    values = [b / a for a, b in zip(first, second, strict=True) if a > 0]
    return Spread(
        median=median(values),
        mean=fmean(values),
        standard_error=stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan"),
        lowest=min(values),
        highest=max(values),
        rounds=len(values),
    )


def sentences(found: Mapping[int, Mapping[str, Spread]], names: tuple[str, str]) -> list[str]:
    """One line a concurrency."""
    shown = {"ttft_median_ms": "TTFT", "tpot_median_ms": "TPOT", "output_tokens_s": "throughput"}
    return [
        f"{names[1]} / {names[0]} at {concurrency}: "
        + ", ".join(
            f"{word} {of[name]['median']:.3f} (mean {of[name]['mean']:.3f} "
            f"+- {of[name]['standard_error']:.3f}, {of[name]['lowest']:.3f}-"
            f"{of[name]['highest']:.3f})"
            for name, word in shown.items()
        )
        for concurrency, of in found.items()
    ]
