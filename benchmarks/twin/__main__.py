"""Two real CPU instances and their twin, on the same requests.

python -m benchmarks.twin [--json FILE] [--request-rate R] [--duration-s S]

1.  Start a pool of two instances of the demo model.
2.  `dynaserve profile` on both at once: they share the cores then as they do under load.
3.  Single requests on the idle pool: what client, gateway and bus add to a first token, and what
    the engine's loop adds to each step.
4.  Replay each load with `dynaserve bench`, under each policy, on the same engines.
5.  Simulate the very same requests with what was measured in 2 and 3; nothing is adjusted after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from benchmarks.twin.compare import Overheads, errors, overheads, simulated, twin_settings
from dynaserve.bench.progress import Board
from dynaserve.bench.provenance import command_line, provenance
from dynaserve.bench.run import BenchResult, bench
from dynaserve.bench.settings import BenchSettings, read_settings
from dynaserve.local_pool import LocalPool, PoolSettings
from shared.latency_model import FitError, LatencyModel, LatencyProfile

TRACES = Path("benchmarks/traces")
CONV, CODE = TRACES / "azure2023_conv.csv.gz", TRACES / "azure2023_code.csv.gz"
SUMMARIES = TRACES / "lengths_arxiv_summarization.csv.gz"
LOADS = {"azure conv": (CONV,), "hybrid": (CONV, CODE, SUMMARIES)}
SYSTEMS = ("colocated/slo", "dynaserve/slo", "colocated/static:2048")
POOL = "twin"
IDLE_PROMPT, IDLE_OUTPUT, IDLE_REQUESTS = 64, 33, 15


async def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="dynaserve-twin-"))
    settings = PoolSettings(
        instances=2, port=arguments.port, pool=POOL, log_folder=folder, admission="queue"
    )
    async with LocalPool(settings) as pool:
        profile = await profiled(pool.nats_url, folder)
        idle = await replay(pool, idle_flags(folder))
        found = overheads(idle.results[0].at.observations, profile.model)
        console.print(f"profile {profile.model}\noverheads {found}")
        async with httpx.AsyncClient(base_url=pool.url) as client:
            record = (await client.get("/dynaserve/pool")).json()["instances"][0]
        loads = {}
        for name, traces in LOADS.items():
            result = await replay(pool, load_flags(arguments, traces))
            loads[name] = compared(result, record, profile, found)
    return {
        **provenance(["python", "-m", "benchmarks.twin", *command_line()[1:]]),
        "profile": json.loads(profile.to_json()),
        "overheads": found._asdict(),
        "loads": loads,
    }


async def profiled(nats: str, folder: Path) -> LatencyProfile:
    """The mean of both instances' profiles, measured at the same time."""
    files = [folder / f"profile-{index}.json" for index in range(2)]
    await asyncio.gather(*(profile_one(nats, f"instance-{i}", f) for i, f in enumerate(files)))
    both = [LatencyProfile.load(file) for file in files]
    mean = [sum(values) / 2 for values in zip(*(each.model for each in both), strict=True)]
    error = [sum(values) / 2 for values in zip(*(each.error for each in both), strict=True)]
    return LatencyProfile(
        LatencyModel(*mean),
        FitError(*error),
        sum(each.num_steps for each in both),
        both[0].hardware,
        both[0].model_name,
        both[0].versions,
        "dynaserve profile on two instances at once, mean",
    )


async def profile_one(nats: str, instance: str, file: Path) -> None:
    flags = ("--nats", nats, "--pool", POOL, "--instance", instance, "--json", str(file))
    command = (sys.executable, "-m", "dynaserve", "profile", "--budget-s", "20", *flags)
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    if await child.wait():
        raise RuntimeError(f"profiling {instance} failed")


def idle_flags(folder: Path) -> list[str]:
    """One short request every half second, never two at once."""
    rows = "".join(f"{0.5 * n},{IDLE_PROMPT},{IDLE_OUTPUT}\n" for n in range(IDLE_REQUESTS))
    file = folder / "idle.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    return ["--trace", str(file), "--duration-s", str(0.5 * IDLE_REQUESTS)]


def load_flags(arguments: argparse.Namespace, traces: tuple[Path, ...]) -> list[str]:
    flags = [part for system in SYSTEMS for part in ("--compare", system)]
    flags += [part for trace in traces for part in ("--trace", str(trace))]
    flags += ["--arrivals", "poisson"] if len(traces) == 1 else ["--window-s", "5"]
    return [
        *flags,
        *("--length-scale", str(arguments.length_scale)),
        *("--request-rate", str(arguments.request_rate)),
        *("--duration-s", str(arguments.duration_s), "--warmup-s", "3"),
        *("--slo-ttft-ms", "1000", "--slo-ttft-ms-per-token", "1"),
        *("--slo-tbt-ms", str(arguments.slo_tbt_ms)),
    ]


async def replay(pool: LocalPool, flags: list[str]) -> BenchResult:
    settings: BenchSettings = read_settings(["--nats", pool.nats_url, "--pool", POOL, *flags])
    return await bench(settings, Board(Console(stderr=True)))


def compared(
    result: BenchResult, record: dict[str, Any], profile: LatencyProfile, found: Overheads
) -> list[dict[str, Any]]:
    """One entry a system: real, twin, and the twin's relative errors."""
    rows = []
    for each in result.results:
        policy, _, batcher = each.system.partition("/")
        twin = twin_settings(result, record, profile, found, batcher)
        figures = simulated(twin, policy, each.at.schedule.requests, result.settings.duration_s)
        real = dict(each.at.figures)
        distrust = list(each.at.distrust)
        rows.append({"system": each.system, **errors(real, figures), "distrust": distrust})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--request-rate", type=float, default=3.0)
    parser.add_argument("--duration-s", type=float, default=20.0)
    parser.add_argument("--length-scale", type=float, default=0.8)
    parser.add_argument("--slo-tbt-ms", type=float, default=120.0)
    parser.add_argument("--port", type=int, default=8441)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    text = json.dumps(asyncio.run(measure(arguments, Console(stderr=True))), indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
