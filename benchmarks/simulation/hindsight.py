"""What the choice of decode holders could gain if all arrivals and lengths were known.

    python -m benchmarks.simulation.hindsight --traces DIR --rate R --budget-s S [--out FILE]

The policy's pool-level target is replaced by a schedule: of every few seconds it says who holds
decodes, or leaves that to the policy. Hill climbing over schedules, each judged by a whole run of
the same arrivals, looks for more requests in SLO. Such a schedule is fitted to one run and its
chances: no policy can have it, so it is an upper estimate of what better choices of holders bring.
"""

from __future__ import annotations

import random
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest import mock

from benchmarks.simulation.sweep import OURS, loads, scenario, tell
from dynaserve.sim.capacity import Scenario, simulate_rate
from dynaserve.sim.simulator import SimSettings
from services.global_sched.policy import survey
from services.global_sched.policy.decode_target import TargetSettings, decode_holders
from services.global_sched.policy.loads import Turn
from shared.latency_model import LatencyProfile

HYBRID = "hybrid"
Holders = tuple[int, ...] | None
"""Indices of the instances that hold decodes; None: as the policy chooses."""
CHOICES: tuple[Holders, ...] = (None, (0,), (1,), (0, 1))
MOST_CHANGED = 3
"""Neighbouring parts of the schedule that one trial changes."""


class Hindsight:
    """Runs one scenario at one rate under any schedule."""

    def __init__(self, planned: Scenario, rate_rps: float, part_s: float) -> None:
        self.planned = planned
        self.rate_rps = rate_rps
        self.part_s = part_s
        self.num_parts = int(planned.until_s / part_s) + 1

    def attainment(self, schedule: Sequence[Holders]) -> float:
        def scheduled(turn: Turn, settings: TargetSettings) -> list[int]:
            part = int(turn.request.arrival_s / self.part_s)
            chosen = schedule[min(part, self.num_parts - 1)]
            return decode_holders(turn, settings) if chosen is None else list(chosen)

        with mock.patch.object(survey, "decode_holders", scheduled):
            return simulate_rate(self.planned, self.rate_rps)[1]["attainment"]


def climb(run: Hindsight, draws: random.Random, budget_s: float) -> list[tuple[int, float]]:
    """Trials and attainment, at each gain; a trial that is as good is kept too."""
    best: list[Holders] = [None] * run.num_parts
    reached = run.attainment(best)
    gains, trials = [(0, reached)], 0
    until_s = time.monotonic() + budget_s
    while time.monotonic() < until_s:
        first, width = draws.randrange(run.num_parts), draws.randint(1, MOST_CHANGED)
        trial = list(best)
        trial[first : first + width] = [draws.choice(CHOICES)] * len(trial[first : first + width])
        if trial == best:
            continue
        trials += 1
        found = run.attainment(trial)
        if found > reached:
            gains.append((trials, found))
            print(trials, round(found, 4), file=sys.stderr)
        if found >= reached:
            best, reached = trial, found
    return [*gains, (trials, reached)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description="The hybrid on two instances, holders by hindsight.")
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--slo-tbt-ms", type=float, default=25.0)
    parser.add_argument("--rate", type=float, required=True, help="requests/s")
    parser.add_argument("--part-s", type=float, default=3.0, help="of the schedule")
    parser.add_argument("--budget-s", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--draws", type=int, default=1, help="seed of the search")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    model = LatencyProfile.load().model
    settings = SimSettings(model, 2, slo_tbt_s=1e-3 * given.slo_tbt_ms)
    arrivals = partial(loads(given.traces, model)[HYBRID], seed=given.seed)
    run = Hindsight(scenario(OURS, HYBRID, arrivals, settings), given.rate, given.part_s)
    gains = climb(run, random.Random(given.draws), given.budget_s)
    body = {
        "command": " ".join(["python -m benchmarks.simulation.hindsight", *sys.argv[1:]]),
        "rate_rps": given.rate,
        "policy_attainment": gains[0][1],
        "hindsight_attainment": gains[-1][1],
        "trials": gains[-1][0],
        "gains": gains,
    }
    tell(body, given.out)


if __name__ == "__main__":
    main()
