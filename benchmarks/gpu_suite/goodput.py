"""One cell: every system in turn on the same engines under the same arrivals, judged twice."""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.gpu_suite.cells import GPU_WINDOW_S, Cell
from dynaserve.bench.figures import Figures, figures
from dynaserve.bench.observation import Observation
from dynaserve.bench.pool import connected
from dynaserve.bench.progress import Board
from dynaserve.bench.run import BenchResult, SystemRun, bench
from dynaserve.bench.settings import read_settings
from dynaserve.bench.slo import Slos
from shared.schemas.segment import TimedStep

TTFT_MS, TTFT_MS_PER_TOKEN = 1000, 0.2
KEPT = (
    "requests",
    "attainment",
    "ttft_attainment",
    "tbt_attainment",
    "goodput_rps",
    "goodput_output_tokens_s",
    "offered_rps",
    "output_throughput",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "tbt_p50_ms",
    "tbt_p99_ms",
    "failed",
    "refused",
    "unfinished",
    "failures",
)


def bench_flags(given: argparse.Namespace, cell: Cell, tbt_ms: int) -> list[str]:
    """What `dynaserve bench` is told for this cell, but the systems and where the pool is."""
    flags = [f"--trace={given.traces / name}.csv.gz" for name in cell.traces]
    rate_rps = cell.rate_rps * given.rate_factor * given.instances / 2
    flags += ["--arrivals=poisson", f"--request-rate={rate_rps}"]
    if len(cell.traces) > 1:
        flags.append(f"--window-s={GPU_WINDOW_S}")
    if given.cpu:
        flags.append("--length-scale=0.05")
    return [
        *flags,
        f"--duration-s={given.seconds}",
        *("--warmup-s=3", "--settle-s=0.2", "--timeout-s=60", "--num-warmups=0"),
        f"--client-processes={1 if given.cpu else 4}",
        f"--slo-ttft-ms={TTFT_MS}",
        f"--slo-ttft-ms-per-token={TTFT_MS_PER_TOKEN}",
        f"--slo-tbt-ms={tbt_ms}",
        f"--seed={given.seed}",
        f"--repeats={given.repeats}",
    ]


def pool_flags(given: argparse.Namespace, nats: str) -> list[str]:
    """Where `dynaserve bench` finds the suite's pool."""
    urls = [f"--url=http://127.0.0.1:{given.port + n}" for n in range(given.gateways)]
    return [*urls, f"--nats={nats}", "--pool=suite"]


async def run_cell(
    given: argparse.Namespace,
    cell: Cell,
    objectives_ms: Sequence[int],
    nats: str,
    source: dict[str, object],
    target: Path,
) -> dict[str, dict[str, float]]:
    """All systems; the file is written after each group. Returns attainment by system and SLO."""
    where = pool_flags(given, nats)
    tightest = min(objectives_ms)
    plan = [(tuple(given.fixed_systems), tightest, tuple(objectives_ms))]
    plan += [(tuple(given.slo_systems), tbt_ms, (tbt_ms,)) for tbt_ms in objectives_ms]
    rows: list[dict[str, Any]] = []
    with target.with_suffix(".log").open("w") as log:
        board = Board(Console(file=log))
        for systems, tbt_ms, judged_ms in plan:
            if not systems:
                continue
            flags = bench_flags(given, cell, tbt_ms)
            chosen = [f"--compare={name}" for name in systems]
            result = await bench(read_settings([*flags, *chosen, *where]), board)
            steps = target.with_name(f"steps_{cell.name}_{tbt_ms}.csv.gz")
            await keep_steps(nats, given.instances, steps)
            rows += [row(result, each, judged_ms) for each in result.results]
            document = {**source, "cell": asdict(cell), "bench": flags, "systems": rows}
            target.write_text(json.dumps(document, indent=1) + "\n")
    return summary(rows)


async def keep_steps(nats: str, instances: int, target: Path) -> None:
    """The last steps of every instance, as they timed them: to see what the batcher did."""
    async with connected(nats, "suite") as control:
        await control.registry.wait_until(lambda registry: len(registry.instances) >= instances)
        steps = await control.take_steps()
    with gzip.open(target, "wt", newline="") as sink:
        table = csv.DictWriter(sink, ["instance_id", *TimedStep.model_fields])
        table.writeheader()
        for each in steps:
            rows = (step.model_dump() for step in each.steps)
            table.writerows({"instance_id": each.instance_id, **row} for row in rows)


def row(result: BenchResult, each: SystemRun, judged_ms: Sequence[int]) -> dict[str, Any]:
    """One system's run, its figures under each TBT objective in ``judged_ms``."""
    return {
        "system": each.system,
        "repeat": each.repeat,
        "client_bottleneck": list(each.at.distrust),
        "by_tbt_ms": {
            str(tbt_ms): kept(
                judged(each.at.observations, result.slos, tbt_ms, result.settings.duration_s)
            )
            for tbt_ms in judged_ms
        },
    }


def judged(seen: Sequence[Observation], slos: Slos, tbt_ms: int, span_s: float) -> Figures:
    """The figures of a run as if its TBT objective had been ``tbt_ms``."""
    return figures(seen, replace(slos, default=replace(slos.default, tbt_s=1e-3 * tbt_ms)), span_s)


def kept(found: Figures) -> dict[str, object]:
    """What goes into the file; a figure that is not a number is null."""
    values: dict[str, object] = {name: dict(found)[name] for name in KEPT}
    return {name: None if value != value else value for name, value in values.items()}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """``system -> {tbt_ms: share in SLO}``; of repeats the last."""
    found: dict[str, dict[str, float]] = {}
    for each in rows:
        shares = found.setdefault(each["system"], {})
        for tbt_ms, of in each["by_tbt_ms"].items():
            shares[tbt_ms] = round(of["attainment"], 3)
    return found
