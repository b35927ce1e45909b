"""The rate each system holds: a ramp of measured runs on the same engines under the same arrivals.

Capacity: the highest rate at which 90 % of the requests meet both objectives. Each system climbs
from the cell's rate, or down from there; every rate it tried is in the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu_suite.cells import Cell
from benchmarks.gpu_suite.goodput import bench_flags, kept, pool_flags
from dynaserve.bench.progress import Board
from dynaserve.bench.run import BenchResult, bench
from dynaserve.bench.settings import read_settings

GROWTH, PRECISION = 1.25, 0.06
"""Of the ramp: the noise of a run of a dozen seconds allows no finer one."""


async def run_cell(
    given: argparse.Namespace,
    cell: Cell,
    tbt_ms: int,
    nats: str,
    source: dict[str, object],
    target: Path,
    left_s: Callable[[], float],
) -> dict[str, float | str]:
    """All systems in turn; the file is written after each. Returns capacities (requests/s).

    A system is skipped, and the result says so, when less than ``given.ramp_s`` is left.
    """
    flags = [
        *bench_flags(given, cell, tbt_ms),
        *("--ramp", f"--ramp-growth={GROWTH}", f"--ramp-precision={PRECISION}"),
    ]
    found: dict[str, float | str] = {}
    rows: list[dict[str, Any]] = []
    with target.with_suffix(".log").open("w") as log:
        board = Board(Console(file=log))
        for system in (*given.fixed_systems, *given.slo_systems):
            if left_s() < given.ramp_s:
                found[system] = "skipped"
                continue
            chosen = [*flags, f"--compare={system}", *pool_flags(given, nats)]
            rows += rows_of(await bench(read_settings(chosen), board))
            found[system] = rows[-1]["capacity_rps"]
            document = {**source, "cell": asdict(cell), "bench": flags, "systems": rows}
            target.write_text(json.dumps(document, indent=1) + "\n")
    return found


def rows_of(result: BenchResult) -> list[dict[str, Any]]:
    """A row per system and repeat: its capacity, and every rate tried with its figures."""
    return [
        {
            "system": each.system,
            "repeat": each.repeat,
            "capacity_rps": each.capacity_rps,
            "at_capacity": kept(each.at.figures),
            "steps": [
                {
                    "rate_rps": run.rate_rps,
                    "cut_short": run.cut_short,
                    "client_bottleneck": list(run.distrust),
                    **kept(run.figures),
                }
                for run in each.runs
            ],
        }
        for each in result.results
    ]
