"""How much the hybrid's lead depends on how long each kind of traffic lasts.

    python -m benchmarks.simulation.windows --traces DIR --instances 2 [--out FILE]

Capacities of `slo` (colocated) and `dynaserve` on the hybrid of all four traces, for windows of
several lengths and several patterns of arrivals, and of each trace alone. All windows hold the same
GPU work: if no window left anything to the next, the hybrid's lead would be the harmonic mean of
those of its parts.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

from benchmarks.simulation.patterns import capacities, leads
from benchmarks.simulation.sweep import TRACES, Arrivals, loads, tell
from dynaserve.sim.simulator import SimSettings
from shared.latency_model import LatencyProfile

HYBRID = "hybrid"


def lead(load: str, arrivals: Arrivals, settings: SimSettings, patterns: int) -> dict[str, Any]:
    """Capacities by pattern of arrivals, and `dynaserve` over `slo` in the mean."""
    found = capacities(load, arrivals, settings, patterns)
    return {"capacity_rps": found, "ratio": round(fmean(leads(found)), 3)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description="The hybrid's lead by the length of its windows.")
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--slo-tbt-ms", type=float, default=25.0)
    parser.add_argument("--patterns", type=int, default=4)
    parser.add_argument("--windows-s", type=float, nargs="+", default=[5.0, 7.5, 15.0, 30.0, 60.0])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    model = LatencyProfile.load().model
    settings = SimSettings(model, given.instances, slo_tbt_s=1e-3 * given.slo_tbt_ms)
    every = loads(given.traces, model)
    alone = {name: lead(name, every[name], settings, given.patterns) for name in TRACES}
    print(alone, file=sys.stderr)
    cells = []
    for window_s in given.windows_s:
        hybrid = partial(every[HYBRID], window_s=window_s)
        cells.append({"window_s": window_s} | lead(HYBRID, hybrid, settings, given.patterns))
        print(cells[-1], file=sys.stderr)
    body = {
        "command": " ".join(["python -m benchmarks.simulation.windows", *sys.argv[1:]]),
        "instances": given.instances,
        "slo_tbt_ms": given.slo_tbt_ms,
        "alone": alone,
        "without_carry_over": round(harmonic_mean([each["ratio"] for each in alone.values()]), 3),
        "hybrid": cells,
    }
    tell(body, given.out)


if __name__ == "__main__":
    main()
