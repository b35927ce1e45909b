"""Attainment where steps scatter around the model, as they do on hosts that are not quiet.

    python -m benchmarks.simulation.noise RESULTS.json ... --traces DIR [--out FILE]

Steps take a log-normal factor longer or shorter, batchers learn a margin from that, and the policy
plans with it. "untold" is the same policy without that knowledge: it plans as if steps could use
the whole SLO. All at one rate: 85 % of the best other's capacity in RESULTS, without that scatter.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.simulation.sweep import OURS, PATTERNS, Arrivals, loads, scenario, tell
from dynaserve.sim.capacity import Scenario, simulate_rate
from dynaserve.sim.simulator import SimSettings
from services.global_sched.policy import POLICIES
from services.global_sched.policy.views import Decision, PoolView, RequestView
from shared.latency_model import LatencyProfile

RATE = 0.85
UNTOLD = f"{OURS} untold"
CONFIGURATIONS = (OURS, UNTOLD, "slo", "disagg slo")
KEPT = ("attainment", "ttft_attainment", "tbt_attainment", "cut_share", "ttft_p99_ms")


class Untold:
    """The policy `dynaserve` without what batchers tell of their margins."""

    def __init__(self) -> None:
        self._policy = POLICIES[OURS]()

    def place(self, request: RequestView, pool: PoolView) -> Decision:
        views = tuple(replace(view, step_margin=0.0) for view in pool.instances)
        return self._policy.place(request, replace(pool, instances=views))


def planned(
    name: str, load: str, arrivals: Arrivals, settings: SimSettings, noise: float
) -> Scenario:
    policy = Untold if name == UNTOLD else None
    found = scenario(OURS if policy else name, load, arrivals, settings)
    return replace(
        found,
        settings=replace(found.settings, step_noise=noise),
        policy=policy or found.policy,
    )


def figures(each: Sequence[Scenario], rate_rps: float) -> dict[str, float]:
    """Means over patterns of arrivals."""
    reports: list[dict[str, Any]] = [{**simulate_rate(one, rate_rps)[1]} for one in each]
    return {key: round(fmean(report[key] for report in reports), 4) for key in KEPT}


def cell(found: dict[str, Any], arrivals: Arrivals, base: SimSettings, noise: float) -> Any:
    rate_rps = RATE * found["capacity_rps"][found["best_other"]]
    settings = replace(base, instances=found["instances"], slo_tbt_s=1e-3 * found["slo_tbt_ms"])
    patterns = [partial(arrivals, seed=seed) for seed in PATTERNS[:2]]
    return {
        **{key: found[key] for key in ("instances", "load", "slo_tbt_ms")},
        "step_noise": noise,
        "rate_rps": rate_rps,
        "systems": {
            name: figures(
                [planned(name, found["load"], each, settings, noise) for each in patterns],
                rate_rps,
            )
            for name in CONFIGURATIONS
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description="Attainment where steps scatter around the model.")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--loads", nargs="*", default=["conv", "code"])
    parser.add_argument("--step-noise", nargs="*", type=float, default=[0.05, 0.15])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    settings = SimSettings(LatencyProfile.load().model)
    every = loads(given.traces, settings.model)
    body: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.simulation.noise", *sys.argv[1:]]),
        "cells": [
            cell(found, every[found["load"]], settings, noise)
            for path in given.results
            for found in json.loads(path.read_text())["cells"]
            if found["load"] in given.loads
            for noise in given.step_noise
        ],
    }
    tell(body, given.out)


if __name__ == "__main__":
    main()
