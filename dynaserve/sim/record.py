"""What the simulator remembers of one request, and how it is judged against its SLO."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynaserve.sim.traces import SimRequest

if TYPE_CHECKING:
    from dynaserve.sim.instance import Segment, SimInstance
    from services.global_sched.policy.views import Decision, RequestView


class RequestRecord:
    """Times of one request. Gaps between tokens are step ranges plus single long gaps."""

    __slots__ = (
        "arrival_s",
        "cut",
        "decision",
        "emitted",
        "finished_s",
        "first_token_s",
        "hit_tokens",
        "live",
        "long_gaps_ms",
        "measured",
        "ranges",
        "refused",
        "request",
        "restarts",
        "slo_tbt_ms",
        "slo_ttft_s",
        "view",
    )

    def __init__(
        self, request: SimRequest, slo_ttft_s: float, slo_tbt_ms: float, measured: bool
    ) -> None:
        self.request = request
        self.arrival_s = request.arrival_s
        self.slo_ttft_s = slo_ttft_s
        self.slo_tbt_ms = slo_tbt_ms
        self.measured = measured
        self.first_token_s = -1.0
        self.finished_s = -1.0
        self.refused = False
        self.restarts = 0
        self.emitted = 0
        self.hit_tokens = 0
        self.cut: int | None = None
        self.ranges: list[tuple[SimInstance, int, int]] = []
        self.long_gaps_ms: list[float] = []
        self.decision: Decision | None = None
        self.view: RequestView | None = None
        self.live: list[tuple[SimInstance, Segment]] = []

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrival_s

    @property
    def num_gaps(self) -> int:
        return self.request.output_tokens - 1

    def missed_gaps(self) -> int:
        """Gaps between tokens that are longer than the SLO."""
        missed = sum(gap > self.slo_tbt_ms + 1e-6 for gap in self.long_gaps_ms)
        for instance, first, end in self.ranges:
            missed += instance.slow_steps[end] - instance.slow_steps[first]
        return missed

    def meets_ttft(self) -> bool:
        return self.first_token_s >= 0.0 and self.ttft_s <= self.slo_ttft_s

    def meets_tbt(self) -> bool:
        """P99 (nearest rank) of the gaps within the SLO: at most one in a hundred longer."""
        return self.missed_gaps() <= self.num_gaps // 100

    def meets_slo(self) -> bool:
        finished = self.finished_s >= 0.0 and not self.refused
        return finished and self.meets_ttft() and self.meets_tbt()

    def gaps_ms(self) -> list[float]:
        """Every gap between tokens."""
        gaps = list(self.long_gaps_ms)
        for instance, first, end in self.ranges:
            gaps.extend(instance.durations_ms[first:end])
        return gaps
