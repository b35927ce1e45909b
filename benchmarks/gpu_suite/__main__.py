"""``python -m benchmarks.gpu_suite``: start a pool once, run every experiment on it, write JSON.

    python -m benchmarks.gpu_suite --out DIR --steps profile handoffs goodput --tbt-ms 100
    python -m benchmarks.gpu_suite --out DIR --steps certify overhead
    python -m benchmarks.gpu_suite --out DIR --cpu            # the demo model, everything small

A step that fails is reported in the summary and does not stop the others. ``--deadline-s`` skips
what would not be done in time.
"""

import argparse
import asyncio
import functools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.gpu_suite.cells import CELLS, SYSTEMS, Cell
from benchmarks.gpu_suite.handoffs import PairClient, measure
from dynaserve.bench.provenance import provenance
from dynaserve.local_pool import LocalPool
from dynaserve.local_pool.settings import read_settings
from shared.bus_nats import NatsBus
from shared.registry import PoolRegistry
from shared.subjects import Subjects

SHAPE = "benchmarks/models/qwen2.5-14b-shape"
GPU_FLAGS = (
    "--load-format=dummy --skip-tokenizer-init --max-model-len=32768 --max-num-seqs=256 "
    "--max-num-batched-tokens=8192 --gpu-memory-utilization=0.9 --served-model-name=suite"
)
SMALL_FLAGS = "--instances=2 --max-num-batched-tokens=512"
CERTIFY_FLAGS = (
    "--dtype=float32 --max-model-len=2048 --block-size=16 --served-model-name=demo "
    "--max-num-batched-tokens=64 --gpu-memory-utilization=0.3 --enforce-eager"
)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the JSON files")
    add("--cpu", action="store_true", help="demo model, short lengths, low rates")
    add("--steps", nargs="+", default=["profile", "handoffs", "goodput"])
    add("--model", default=SHAPE)
    add("--flags", default=GPU_FLAGS, help="of the pool and its engines")
    add("--tbt-ms", type=int, default=100)
    add("--seconds", type=float, default=12.0, help="measured time of each system and cell")
    add("--cells", nargs="+", default=[cell.name for cell in CELLS])
    add("--systems", default=",".join(SYSTEMS))
    add("--traces", type=Path, default=Path("benchmarks/traces"))
    add("--rate-factor", type=float, default=1.0)
    add("--gateways", type=int, default=4)
    add("--deadline-s", type=float, default=540.0)
    return parser.parse_args()


class Suite:
    """Runs steps against a deadline and keeps the summary."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.out: Path = given.out
        self.started_s = time.monotonic()
        self.summary: dict[str, object] = {"command": " ".join(sys.argv), "steps": {}}

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
        name = f"suite_tbt{self.given.tbt_ms}_{'_'.join(self.given.steps)}.json"
        (self.out / name).write_text(json.dumps(self.summary, indent=1, default=str) + "\n")


async def command(*arguments: str, timeout_s: float, log: Path) -> int:
    """One command of ours, its output in a file. Raises TimeoutError or RuntimeError."""
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, stdout=sink, stderr=sink
        )
        try:
            async with asyncio.timeout(timeout_s):
                status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if status != 0:
        tail = log.read_text(errors="replace").splitlines()[-6:]
        raise RuntimeError(f"{arguments[0]} ended with status {status}: {tail}")
    return status


async def on_pool(suite: Suite) -> None:
    """All steps that share the big pool."""
    given = suite.given
    pool = LocalPool(read_settings(pool_arguments(given)))
    began_s = time.monotonic()
    async with pool:
        suite.summary["pool_ready_s"] = time.monotonic() - began_s
        print(f"[{time.monotonic() - suite.started_s:6.1f} s] pool ready", flush=True)
        bus = await NatsBus.connect(pool.nats_url, "suite")
        registry = PoolRegistry(bus, Subjects(pool.settings.pool))
        watching = asyncio.create_task(registry.run())
        await registry.wait_until(lambda r: len(r.instances) >= 2)
        suite.summary["provenance"] = provenance([r.device for r in registry.instances.values()])
        if "profile" in given.steps:
            await suite.step("profile", 40, lambda: run_profile(suite, pool))
        if "handoffs" in given.steps:
            await suite.step("handoffs", 40, lambda: run_handoffs(suite, bus, registry, pool))
        if "goodput" in given.steps:
            for cell in CELLS:
                if cell.name in given.cells:
                    need_s = (given.seconds + 8) * len(given.systems.split(","))
                    work = functools.partial(run_cell, suite, pool, cell)
                    await suite.step(f"goodput_{cell.name}", need_s, work)
        watching.cancel()
        await bus.close()


def pool_arguments(given: argparse.Namespace) -> list[str]:
    common = ["--port=8321", "--pool=suite", f"--gateways={given.gateways}", "--schedulers=2"]
    common.append(f"--log-folder={given.out / 'logs'}")
    common += [f"--slo-tbt-ms={given.tbt_ms}", "--admission=queue"]  # as vLLM: refuses nothing
    if given.cpu:
        return [*common, *SMALL_FLAGS.split()]
    return [given.model, *common, *given.flags.split()]


async def run_profile(suite: Suite, pool: LocalPool) -> object:
    target = suite.out / "profile.json"
    await command(
        "dynaserve", "profile", "--nats", pool.nats_url, "--pool", "suite",
        "--budget-s", "10" if suite.given.cpu else "30", "--json", str(target),
        timeout_s=120, log=suite.out / "profile.log",
    )  # fmt: skip
    return json.loads(target.read_text())["error"]


async def run_handoffs(
    suite: Suite, bus: NatsBus, registry: PoolRegistry, pool: LocalPool
) -> object:
    client = PairClient(bus, Subjects(pool.settings.pool), registry)
    await client.start()
    lengths = [64, 256] if suite.given.cpu else [1024, 8192, 31000]
    figures = await measure(client, registry.instances, lengths, 5 if suite.given.cpu else 12)
    (suite.out / "handoffs.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


async def run_cell(suite: Suite, pool: LocalPool, cell: Cell) -> object:
    """All systems in turn under the same arrivals; returns attainment and goodput by system."""
    given = suite.given
    target = suite.out / f"goodput_{cell.name}_tbt{given.tbt_ms}.json"
    rate = cell.rate_rps[given.tbt_ms] * given.rate_factor
    extra = ["--length-scale", "0.05"] if given.cpu else []
    if len(cell.traces) > 1:
        extra += ["--window-s", str(max(1.0, given.seconds / 6))]
    traces = [f"--trace={given.traces / name}.csv.gz" for name in cell.traces]
    urls = [f"--url=http://127.0.0.1:{8321 + n}" for n in range(given.gateways)]
    await command(
        "dynaserve", "bench", *traces, *urls, "--nats", pool.nats_url, "--pool", "suite",
        "--compare", given.systems, "--arrivals", "poisson",
        "--request-rate", str(rate), "--duration-s", str(given.seconds),
        "--warmup-s", "3", "--settle-s", "0.5",
        "--timeout-s", "40", "--client-processes", "1" if given.cpu else "4",
        "--slo-ttft-ms", "1000", "--slo-ttft-ms-per-token", "0.2",
        "--slo-tbt-ms", str(given.tbt_ms), "--json", str(target), *extra,
        timeout_s=suite.left_s, log=suite.out / f"goodput_{cell.name}.log",
    )  # fmt: skip
    return (suite.out / f"goodput_{cell.name}.log").read_text(errors="replace")[-2500:]


async def run_certify(suite: Suite) -> object:
    """Exactness on this host, in float32 on a small model, through a pool of its own."""
    flags = "" if suite.given.cpu else CERTIFY_FLAGS
    settings = read_settings(
        ["--port=8421", "--pool=certify", "--policy=round_robin", "--instances=2", *flags.split()]
    )
    target = suite.out / "certify.json"
    async with LocalPool(settings) as pool:
        await command(
            "dynaserve", "certify", "--url", pool.url, "--json", str(target),
            timeout_s=min(300.0, suite.left_s), log=suite.out / "certify.log",
        )  # fmt: skip
    body = json.loads(target.read_text())
    return {"cases": body["cases"], "mismatches": body["mismatches"]}


async def run_overhead(suite: Suite) -> object:
    """One instance behind gateway, scheduler and bus against plain `vllm serve`."""
    target = suite.out / "overhead.json"
    arguments = ["--json", str(target), "--rounds", "1", "--logs", str(suite.out)]
    if not suite.given.cpu:
        flags = suite.given.flags.replace("--served-model-name=suite", "")
        arguments += [
            "--model", suite.given.model, "--engine-args", flags, "--plain-args", "",
            "--pool-args", "--batcher static:8192 --instances 1", "--env", "NCCL_NVLS_ENABLE=0",
            "--prompt-tokens", "1024", "--output-tokens", "128", "--ready-s", "240",
        ]  # fmt: skip
    await command(
        "benchmarks.overhead", *arguments, timeout_s=suite.left_s, log=suite.out / "overhead.log"
    )
    return (suite.out / "overhead.log").read_text(errors="replace")[-1500:]


async def main() -> None:
    given = read_arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    suite = Suite(given)
    if {"profile", "handoffs", "goodput"} & set(given.steps):
        await suite.step("pool", 60, lambda: on_pool(suite))
    if "certify" in given.steps:
        await suite.step("certify", 60, lambda: run_certify(suite))
    if "overhead" in given.steps:
        await suite.step("overhead", 60, lambda: run_overhead(suite))
    suite.write()


if __name__ == "__main__":
    asyncio.run(main())
