"""Search by simulation: the highest rate a pool serves, and the fewest instances for a rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dynaserve.sim.bound import bound_rps
from dynaserve.sim.report import Report, report
from dynaserve.sim.simulator import SimOutcome, SimSettings, Simulator
from dynaserve.sim.traces import SimRequest
from services.global_sched.policy.views import SplitPolicy

Arrivals = Callable[[float, float], Sequence[SimRequest]]
"""(rate, until_s) -> requests"""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated: a pool, a policy, a load, and for how long."""

    settings: SimSettings
    policy: Callable[[], SplitPolicy]
    arrivals: Arrivals
    duration_s: float = 200.0
    warmup_s: float = 20.0
    goal: float = 0.9
    """Share of requests that must meet their SLO."""

    @property
    def until_s(self) -> float:
        return self.warmup_s + self.duration_s

    def timed(self) -> SimSettings:
        return replace(self.settings, warmup_s=self.warmup_s, measure_until_s=self.until_s)


def simulate_rate(
    scenario: Scenario,
    rate: float,
    *,
    until_missed: bool = False,
    progress: Callable[[float], None] | None = None,
) -> tuple[SimOutcome, Report]:
    """One run; with ``until_missed`` it stops as soon as the goal is out of reach."""
    settings = scenario.timed()
    requests = scenario.arrivals(rate, scenario.until_s)
    measured = sum(request.arrival_s >= scenario.warmup_s for request in requests)
    allowed = int(measured * (1.0 - scenario.goal)) if until_missed else None
    simulator = Simulator(settings, scenario.policy())
    outcome = simulator.run(requests, max_missed=allowed, progress=progress)
    return outcome, report(outcome, settings, scenario.duration_s)


def serves(scenario: Scenario, rate: float) -> bool:
    """True when the goal is met at this rate."""
    outcome, figures = simulate_rate(scenario, rate, until_missed=True)
    return not outcome.stopped_early and figures["attainment"] >= scenario.goal


def find_capacity(
    scenario: Scenario,
    *,
    precision: float = 0.01,
    progress: Callable[[float, float], None] | None = None,
) -> float:
    """The highest rate (requests/s, as really offered) that meets the goal, by bisection."""
    requests = scenario.arrivals(4.0 * scenario.settings.instances, scenario.until_s)
    high = 1.15 * bound_rps(requests, scenario.settings)
    low = 0.0
    while high - low > precision * high and high > 1e-3:
        middle = 0.5 * (low + high) if low else 0.6 * high
        if serves(scenario, middle):
            low = middle
        else:
            high = middle
        if progress:
            progress(low, high)
    return low


def fewest_instances(
    scenario: Scenario,
    rate: float,
    *,
    most: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> int | None:
    """The fewest instances that meet the goal at ``rate``; None if ``most`` are too few."""

    def enough(instances: int) -> bool:
        settings = replace(scenario.settings, instances=instances)
        return serves(replace(scenario, settings=settings), rate)

    low, high = 0, 1
    while not enough(high):
        low, high = high, 2 * high
        if low >= most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
        if progress:
            progress(low, high)
    return high
