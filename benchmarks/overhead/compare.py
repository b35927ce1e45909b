"""Ratios of two servers' figures, paired by round. Pure."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
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
    """A ratio, second server to first: mean over rounds, standard error, extremes."""

    mean: float
    standard_error: float
    lowest: float
    highest: float


Rounds = Sequence[Sequence[Level]]
"""Of one server: per round, one level per concurrency."""


def ratios(first: Rounds, second: Rounds) -> dict[int, dict[str, Spread]]:
    """concurrency -> figure -> second / first; each round's pair ran in the same minutes."""
    return {
        levels[0].concurrency: {
            name: _spread(
                [
                    getattr(b[number], name) / getattr(a[number], name)
                    for a, b in zip(first, second, strict=True)
                ]
            )
            for name in FIGURES
        }
        for number, levels in enumerate(zip(*first, strict=True))
    }


def _spread(values: Sequence[float]) -> Spread:
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Spread(mean=fmean(values), standard_error=error, lowest=min(values), highest=max(values))


def sentences(found: Mapping[int, Mapping[str, Spread]], names: tuple[str, str]) -> list[str]:
    """One line a concurrency."""
    shown = {"ttft_median_ms": "TTFT", "tpot_median_ms": "TPOT", "output_tokens_s": "throughput"}
    return [
        f"{names[1]} / {names[0]} at {concurrency}: "
        + ", ".join(
            f"{word} {of[name]['mean']:.3f} ({of[name]['lowest']:.3f}-{of[name]['highest']:.3f})"
            for name, word in shown.items()
        )
        for concurrency, of in found.items()
    ]
