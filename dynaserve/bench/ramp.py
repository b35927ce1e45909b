"""The step ramp: which rate to try next, and what capacity the steps tried so far show. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

GIVE_UP = 0.01
"""A server that misses even at this share of the first rate has no capacity."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """Rates grow by ``growth`` until one misses ``goal``; then the gap is halved to ``precision``.

    Nothing at or above a rate that missed is tried again. When the first rate misses, lower ones
    are tried.
    """

    start_rps: float
    growth: float = 1.5
    goal: float = 0.9
    precision: float = 0.05
    most_rps: float = 1e6

    def __post_init__(self) -> None:
        if not (self.start_rps > 0 and self.growth > 1 and 0 < self.precision < 1):
            raise ValueError("a ramp starts above 0, grows by more than 1, precision within 0..1")


@dataclass(frozen=True, slots=True)
class RampStep:
    """One rate that was tried. ``cut_short``: the goal was out of reach before the end."""

    rate_rps: float
    offered_rps: float
    attainment: float
    goodput_rps: float
    cut_short: bool = False


def meets(ramp: Ramp, step: RampStep) -> bool:
    return not step.cut_short and step.attainment >= ramp.goal


def next_rate(ramp: Ramp, steps: Sequence[RampStep]) -> float | None:
    """The rate to try next; None when the capacity is known well enough."""
    if not steps:
        return ramp.start_rps
    low = max((step.rate_rps for step in steps if meets(ramp, step)), default=0.0)
    high = min((step.rate_rps for step in steps if not meets(ramp, step)), default=None)
    if high is None:
        grown = min(low * ramp.growth, ramp.most_rps)
        return grown if grown > low else None
    if low >= high or high - low <= ramp.precision * high:
        return None
    if low == 0.0:
        lower = high / max(ramp.growth, 2.0)
        return lower if lower >= GIVE_UP * ramp.start_rps else None
    return math.sqrt(low * high)


def capacity_rps(ramp: Ramp, steps: Sequence[RampStep]) -> float:
    """The highest rate, as really offered, that met the goal below the first that did not."""
    first_miss = min(
        (step.rate_rps for step in steps if not meets(ramp, step)), default=float("inf")
    )
    return max(
        (step.offered_rps for step in steps if meets(ramp, step) and step.rate_rps < first_miss),
        default=0.0,
    )


def misses_allowed(ramp: Ramp, requests: int) -> int:
    """So many of ``requests`` may miss before the goal is out of reach."""
    return requests - _ceil(ramp.goal * requests)


def _ceil(value: float) -> int:
    """Up to the next whole number; 90.00000000000001 is 90."""
    return -int(-(value - 1e-9) // 1)
