"""A request's timeline at the gateway and the record made of it when it is over. Pure."""

import math
from dataclasses import dataclass, field

from shared.schemas.request import Slo

Gap = float


@dataclass(slots=True)
class Timeline:
    """When tokens reached the gateway; seconds on one monotonic clock."""

    arrived_s: float
    first_s: float | None = None
    last_s: float = 0.0
    num_tokens: int = 0
    gaps_s: list[Gap] = field(default_factory=list)

    def tokens(self, count: int, now_s: float) -> None:
        """``count`` tokens came together; those after the first follow it without a gap."""
        if count == 0:
            return
        if self.first_s is None:
            self.first_s = now_s
        else:
            self.gaps_s.append(now_s - self.last_s)
        self.gaps_s += [0.0] * (count - 1)
        self.last_s = now_s
        self.num_tokens += count

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.arrived_s

    @property
    def tpot_s(self) -> float | None:
        return sum(self.gaps_s) / len(self.gaps_s) if self.gaps_s else None

    @property
    def tbt_p99_s(self) -> float | None:
        """Nearest-rank P99 of the gaps between tokens."""
        if not self.gaps_s:
            return None
        return sorted(self.gaps_s)[math.ceil(0.99 * len(self.gaps_s)) - 1]

    def meets(self, slo: Slo) -> bool:
        """Whether first token and gaps were in time; without a token nothing was met."""
        if self.ttft_s is None or self.ttft_s > slo.ttft_s:
            return False
        return self.tbt_p99_s is None or self.tbt_p99_s <= slo.tbt_s
