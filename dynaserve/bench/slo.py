"""Latency objectives per traffic class, and whether a request met its own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dynaserve.bench.observation import Observation
from shared.errors import InvalidRequest

TOLERANCE_S = 1e-9


@dataclass(frozen=True, slots=True)
class SloClass:
    """TTFT: ``ttft_s`` plus ``ttft_s_per_token`` per prompt token. Infinite: no objective."""

    ttft_s: float = math.inf
    ttft_s_per_token: float = 0.0
    tbt_s: float = math.inf

    def ttft_bound_s(self, prompt_tokens: int) -> float:
        return self.ttft_s + self.ttft_s_per_token * prompt_tokens

    def meets_ttft(self, seen: Observation) -> bool:
        bound_s = self.ttft_bound_s(seen.request.prompt_tokens)
        return bool(seen.chunk_s) and seen.ttft_s <= bound_s + TOLERANCE_S

    def meets_tbt(self, seen: Observation) -> bool:
        """Its P99 gap between tokens is within the objective."""
        return bool(seen.chunk_s) and seen.tbt_p99_s <= self.tbt_s + TOLERANCE_S

    def is_met(self, seen: Observation) -> bool:
        """A request that was refused, failed or did not end is a miss, whatever its times."""
        return seen.outcome == "ok" and self.meets_ttft(seen) and self.meets_tbt(seen)


@dataclass(frozen=True, slots=True)
class Slos:
    """The objective of each traffic class; ``default`` is for classes not named."""

    default: SloClass = SloClass()
    by_class: Mapping[str, SloClass] = field(default_factory=dict)

    def of(self, traffic_class: str) -> SloClass:
        return self.by_class.get(traffic_class, self.default)

    @property
    def tightest_tbt_s(self) -> float:
        return min(slo.tbt_s for slo in (self.default, *self.by_class.values()))


def parse_slos(
    ttft_ms: Sequence[str], ttft_ms_per_token: Sequence[str], tbt_ms: Sequence[str]
) -> Slos:
    """Each value is ``MS`` for every class or ``CLASS=MS`` for one. Raises InvalidRequest."""
    slos = Slos()
    for option, values in (
        ("ttft_s", ttft_ms),
        ("ttft_s_per_token", ttft_ms_per_token),
        ("tbt_s", tbt_ms),
    ):
        # Values for every class first, so that their order on the command line does not matter.
        for value in sorted(values, key=lambda value: "=" in value):
            slos = _with(slos, option, value)
    return slos


def _with(slos: Slos, option: str, value: str) -> Slos:
    traffic_class, _, number = value.rpartition("=")
    seconds = _seconds(number, value)
    if not traffic_class:
        everyone = {name: replace(slo, **{option: seconds}) for name, slo in slos.by_class.items()}
        return Slos(replace(slos.default, **{option: seconds}), everyone)
    changed = replace(slos.of(traffic_class), **{option: seconds})
    return Slos(slos.default, {**slos.by_class, traffic_class: changed})


def _seconds(number: str, value: str) -> float:
    try:
        seconds = float(number) / 1e3
    except ValueError:
        seconds = math.nan
    if not 0.0 <= seconds < math.inf:
        raise InvalidRequest(f"an objective is MS or CLASS=MS, not {value!r}")
    return seconds
