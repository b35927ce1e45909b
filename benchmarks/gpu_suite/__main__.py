"""``python -m benchmarks.gpu_suite``: start a pool once, run every experiment on it, write JSON.

    python -m benchmarks.gpu_suite --out DIR                  # everything: about 35 minutes
    python -m benchmarks.gpu_suite --out DIR --steps certify handoffs overhead
    python -m benchmarks.gpu_suite --out DIR --steps goodput --cells code --tbt-ms 50
    python -m benchmarks.gpu_suite --out DIR --cpu            # the demo model, everything small

A step that fails is reported in the summary and does not stop the others. ``--deadline-s`` skips
what would not be done in time.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from benchmarks.gpu_suite import apart, capacity, goodput, handoffs, noise, timeline
from benchmarks.gpu_suite.apart import command
from benchmarks.gpu_suite.cells import CELLS, FIXED_SYSTEMS, SLO_SYSTEMS, Cell, wanted_cells
from benchmarks.gpu_suite.pair_client import PairClient
from dynaserve.bench.provenance import command_line, provenance
from dynaserve.local_pool import LocalPool
from dynaserve.local_pool.settings import read_settings
from shared.bus_nats import NatsBus
from shared.registry import PoolRegistry
from shared.subjects import Subjects

SHAPE = "benchmarks/models/qwen2.5-14b-shape"
GPU_FLAGS = (
    "--load-format=dummy --skip-tokenizer-init --max-model-len=32768 --max-num-seqs=256 "
    "--max-num-batched-tokens=8192 --gpu-memory-utilization=0.85 "
    "--kv-cache-memory-bytes=85899345920 --served-model-name=suite"
)
SMALL_FLAGS = "--max-num-batched-tokens=512"
POOL_STEPS = ("profile", "timeline", "noise", "handoffs", "goodput", "capacity")
STEPS = (*apart.CERTIFY, *POOL_STEPS, "overhead")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the JSON files")
    add("--cpu", action="store_true", help="demo model, short lengths, low rates")
    add("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    add("--model", default=SHAPE)
    add("--flags", default=GPU_FLAGS, help="of the pool and its engines")
    add("--more-flags", default="", help="after those, such as a --compilation-config")
    add("--tbt-ms", type=int, nargs="+", default=[100, 50], help="objectives that are judged")
    add("--seconds", type=float, default=12.0, help="measured time of each system and cell")
    add("--cells", nargs="+", default=[cell.name for cell in CELLS], help="NAME or NAME:TBT,TBT")
    add("--fixed-systems", nargs="*", default=list(FIXED_SYSTEMS))
    add("--slo-systems", nargs="*", default=list(SLO_SYSTEMS))
    add("--repeats", type=int, default=1, help="of each cell, for the noise between runs")
    add("--seed", type=int, default=0, help="of arrivals")
    add("--traces", type=Path, default=Path("benchmarks/traces"))
    add("--ramp-s", type=float, default=90.0, help="time that a system's capacity is given")
    add("--rate-factor", type=float, default=1.0)
    add("--instances", type=int, default=2, help="1: no handoffs, and half of each rate")
    add("--gateways", type=int, default=4)
    add("--overhead-rounds", type=int, default=3)
    add("--port", type=int, default=8321)
    add("--deadline-s", type=float, default=540.0)
    return parser.parse_args()


class Suite:
    """Runs steps against a deadline and keeps the summary."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.out: Path = given.out
        self.started_s = time.monotonic()
        self.summary: dict[str, object] = {"steps": {}}

    @property
    def left_s(self) -> float:
        return float(self.given.deadline_s) - (time.monotonic() - self.started_s)

    async def step(self, name: str, need_s: float, work: Callable[[], Awaitable[object]]) -> None:
        steps = self.summary["steps"]
        assert isinstance(steps, dict)
        if self.left_s < need_s:
            steps[name] = f"skipped: {self.left_s:.0f} s left, {need_s:.0f} needed"
        else:
            began_s = time.monotonic()
            try:
                steps[name] = await work()
            except Exception as error:  # the edge of a step: the others go on
                steps[name] = f"failed: {error!r}"
            print(
                f"[{time.monotonic() - self.started_s:6.1f} s] {name}: "
                f"{time.monotonic() - began_s:.1f} s {str(steps[name])[:300]}",
                flush=True,
            )
        self.write()

    def write(self) -> None:
        (self.out / "suite.json").write_text(json.dumps(self.summary, indent=1, default=str) + "\n")


@contextlib.asynccontextmanager
async def started(suite: Suite) -> AsyncIterator[tuple[LocalPool, PairClient]]:
    """The big pool, its registry complete, and a client that speaks to its instances."""
    began_s = time.monotonic()
    async with LocalPool(read_settings(pool_arguments(suite.given))) as pool:
        suite.summary["pool_ready_s"] = time.monotonic() - began_s
        print(f"[{time.monotonic() - suite.started_s:6.1f} s] pool ready", flush=True)
        bus = await NatsBus.connect(pool.nats_url, "suite")
        registry = PoolRegistry(bus, Subjects(pool.settings.pool))
        watching = asyncio.create_task(registry.run())
        try:
            async with asyncio.timeout(60):
                await registry.wait_until(lambda r: len(r.instances) >= suite.given.instances)
            client = PairClient(bus, Subjects(pool.settings.pool), registry)
            await client.start()
            yield pool, client
        finally:
            watching.cancel()
            await bus.close()


async def on_pool(suite: Suite, beside: list[asyncio.Task[None]]) -> None:
    """All steps that share the big pool; they begin when what runs ``beside`` its start is done."""
    given = suite.given
    async with started(suite) as (pool, client):
        await asyncio.gather(*beside)
        records = client.records
        suite.summary["provenance"] = provenance(
            ["python", "-m", "benchmarks.gpu_suite", *command_line()[1:]],
            devices=dict(Counter(record.device for record in records.values())),
        )
        alpha, beta = min(records), max(records)
        if "profile" in given.steps:
            await suite.step("profile", 40, lambda: run_profile(suite, pool))
        if "timeline" in given.steps:
            await suite.step("timeline", 20, lambda: run_timeline(suite, pool))
        if "noise" in given.steps:
            await suite.step("noise", 30, lambda: run_noise(suite, client, alpha, beta))
        if "handoffs" in given.steps:
            await suite.step("handoffs", 90, lambda: run_handoffs(suite, client))
        if "goodput" in given.steps:
            for cell, tbt_ms in wanted_cells(given.cells, given.tbt_ms):
                await suite.step(
                    f"goodput_{cell.name}",
                    cell_seconds(given, len(tbt_ms)),
                    functools.partial(run_cell, suite, pool, cell, tbt_ms),
                )
        if "capacity" in given.steps:
            for cell, objectives_ms in wanted_cells(given.cells, given.tbt_ms):
                for each_ms in objectives_ms:
                    await suite.step(
                        f"capacity_{cell.name}_{each_ms}",
                        given.ramp_s,
                        functools.partial(find_capacity, suite, pool, cell, each_ms),
                    )


def pool_arguments(given: argparse.Namespace) -> list[str]:
    common = [f"--port={given.port}", "--pool=suite", f"--gateways={given.gateways}"]
    common += [
        f"--instances={given.instances}",
        "--schedulers=2",
        f"--log-folder={given.out / 'logs'}",
    ]
    common += [f"--slo-tbt-ms={min(given.tbt_ms)}", "--admission=queue"]  # as vLLM: refuses nothing
    if given.cpu:
        return [*common, *SMALL_FLAGS.split(), *given.more_flags.split()]
    return [given.model, *common, *given.flags.split(), *given.more_flags.split()]


def cell_seconds(given: argparse.Namespace, num_objectives: int) -> float:
    """About how long a cell takes: each run is warmed up and drained."""
    runs = len(given.fixed_systems) + num_objectives * len(given.slo_systems)
    return float(runs * given.repeats * (given.seconds + 8))


async def run_profile(suite: Suite, pool: LocalPool) -> object:
    target = suite.out / "profile.json"
    await command(
        "dynaserve", "profile", "--nats", pool.nats_url, "--pool", "suite",
        "--budget-s", "10" if suite.given.cpu else "30", "--json", str(target),
        timeout_s=120, log=suite.out / "profile.log",
    )  # fmt: skip
    return json.loads(target.read_text())["error"]


async def run_timeline(suite: Suite, pool: LocalPool) -> object:
    model, length = ("demo", 256) if suite.given.cpu else ("suite", 1024)
    return keep(suite, "timeline", await timeline.measure(pool.url, model, length, 25))


async def run_noise(suite: Suite, client: PairClient, alpha: str, beta: str) -> object:
    prompts, length, output = (16, 100, 20) if suite.given.cpu else (96, 700, 48)
    figures = await noise.measure(client, alpha, beta, prompts, length, output)
    return keep(suite, "noise", figures)


async def run_handoffs(suite: Suite, client: PairClient) -> object:
    plan = handoffs.CPU_PLAN if suite.given.cpu else handoffs.GPU_PLAN
    return keep(suite, "handoffs", await handoffs.measure(client, client.records, plan))


async def run_cell(suite: Suite, pool: LocalPool, cell: Cell, tbt_ms: Sequence[int]) -> object:
    target = suite.out / f"goodput_{cell.name}.json"
    given, nats = suite.given, pool.nats_url
    return await goodput.run_cell(given, cell, tbt_ms, nats, source(suite), target)


async def find_capacity(suite: Suite, pool: LocalPool, cell: Cell, tbt_ms: int) -> object:
    target = suite.out / f"capacity_{cell.name}_{tbt_ms}.json"
    given, nats = suite.given, pool.nats_url
    return await capacity.run_cell(
        given, cell, tbt_ms, nats, source(suite), target, lambda: suite.left_s
    )


def keep(suite: Suite, name: str, figures: dict[str, object]) -> dict[str, object]:
    (suite.out / f"{name}.json").write_text(
        json.dumps({**source(suite), **figures}, indent=1) + "\n"
    )
    return figures


def source(suite: Suite) -> dict[str, object]:
    found = suite.summary["provenance"]
    assert isinstance(found, dict)
    return found


async def main() -> None:
    given = read_arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    suite = Suite(given)
    # Small engines certify while the big ones start: nothing is timed then.
    beside = [
        asyncio.create_task(
            suite.step(
                step,
                60,
                functools.partial(apart.certify, step, given.out, given.cpu, suite.left_s),
            )
        )
        for step in apart.CERTIFY
        if step in given.steps and not (given.cpu and step == "certify-bf16")
    ]
    if set(POOL_STEPS) & set(given.steps):
        await suite.step("pool", 60, lambda: on_pool(suite, beside))
    await asyncio.gather(*beside)
    if "overhead" in given.steps:
        rounds = given.overhead_rounds
        await suite.step(
            "overhead",
            60,
            lambda: apart.overhead(given.model, given.out, given.cpu, rounds, suite.left_s),
        )
    suite.write()


if __name__ == "__main__":
    asyncio.run(main())
