"""How much a lead depends on when requests come, and in which order their lengths do.

    python -m benchmarks.simulation.patterns --traces DIR --instances 2 [--out FILE]

Capacities of `slo` (colocated) and `dynaserve` for several patterns of Poisson arrivals, with the
traces' lengths in the sweep's shuffle and in the order in which they were recorded. The sweep's
capacities are those of the first pattern in the shuffle. Beside them what `fluid.py` finds for the
first pattern.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.simulation.fluid import capacity as fluid
from benchmarks.simulation.sweep import OURS, Arrivals, loads, scenario, shuffled, tell
from dynaserve.sim.capacity import find_capacity
from dynaserve.sim.simulator import SimSettings
from dynaserve.sim.traces import Trace
from shared.latency_model import LatencyProfile

OTHER = "slo"
IDEALS = ("fullest", "moving")


def as_recorded(trace: Trace) -> Trace:
    return trace


ORDERS: dict[str, Callable[[Trace], Trace]] = {"shuffled": shuffled, "as recorded": as_recorded}


def capacities(
    load: str, arrivals: Arrivals, settings: SimSettings, patterns: int
) -> dict[str, list[float]]:
    """Of `slo` and `dynaserve`, by pattern of arrivals."""
    return {
        name: [
            round(find_capacity(scenario(name, load, partial(arrivals, seed=seed), settings)), 2)
            for seed in range(patterns)
        ]
        for name in (OTHER, OURS)
    }


def leads(found: dict[str, list[float]]) -> list[float]:
    """`dynaserve` over `slo`, by pattern."""
    return [ours / other for ours, other in zip(found[OURS], found[OTHER], strict=True)]


def cell(load: str, arrivals: Arrivals, settings: SimSettings, patterns: int) -> dict[str, Any]:
    """Capacities by pattern of arrivals, their ratio, and the fluid ideals of the first."""
    found = capacities(load, arrivals, settings, patterns)
    planned = scenario(OURS, load, arrivals, settings)
    ideals = {placement: round(fluid(planned, placement), 2) for placement in IDEALS}
    ratios = [round(ratio, 3) for ratio in leads(found)]
    mean = round(fmean(ratios), 3)
    return {"load": load, "capacity_rps": found, "ratio": ratios, "mean": mean, "fluid": ideals}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description="Leads over several patterns of arrivals.")
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--slo-tbt-ms", type=float, default=25.0)
    parser.add_argument("--patterns", type=int, default=4)
    kinds = ["code", "conv", "summarisation", "hybrid", "hybrid of three"]
    parser.add_argument("--loads", nargs="*", default=kinds)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    model = LatencyProfile.load().model
    settings = SimSettings(model, given.instances, slo_tbt_s=1e-3 * given.slo_tbt_ms)
    cells = []
    for order, arranged in ORDERS.items():
        every = loads(given.traces, model, arranged)
        for load in given.loads:
            cells.append({"order": order} | cell(load, every[load], settings, given.patterns))
            print(cells[-1], file=sys.stderr)
    body = {
        "command": " ".join(["python -m benchmarks.simulation.patterns", *sys.argv[1:]]),
        "instances": given.instances,
        "slo_tbt_ms": given.slo_tbt_ms,
        "cells": cells,
    }
    tell(body, given.out)


if __name__ == "__main__":
    main()
