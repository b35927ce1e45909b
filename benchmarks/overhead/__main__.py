"""``python -m benchmarks.overhead``: load on two servers in turn, ratios of their figures.

By default the demo model on the CPU, plain ``vllm serve`` against a pool of one instance. The noise
floor of the method is what plain against plain gives: ``--servers plain1 plain2``. On a busy host
``--together`` with many rounds gives a lower one: both servers are up, still only one has load. On
a GPU host name another model and engine arguments; the method stays.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.overhead.compare import ratios, sentences
from benchmarks.overhead.measure import Level, Shape, measure
from benchmarks.overhead.servers import ServerArgs, ServerSpec, parse_server, serving
from dynaserve.bench.provenance import provenance
from dynaserve.demo_model import demo_model

DEMO_ENGINE_ARGS = (
    "--dtype float32 --max-model-len 2048 --block-size 32 --enforce-eager "
    "--max-num-batched-tokens 2048"
)
CPU_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--servers", nargs=2, default=["plain", "pool"], help="plain, pool or NAME=COMMAND")
    add("--model", type=Path, help="folder; default: the demo model")
    add("--engine-args", default=DEMO_ENGINE_ARGS, help="the same for both servers")
    add("--plain-args", default="--distributed-executor-backend uni", help="for vllm serve alone")
    add("--pool-args", default="--batcher static:2048", help="for the pool alone")
    add("--env", nargs="*", default=[f"{k}={v}" for k, v in CPU_ENVIRONMENT.items()])
    add("--rounds", type=int, default=2, help="starts of each server, alternating")
    add(
        "--together",
        action="store_true",
        help="start both once and load them in turn; an idle server costs little, and pairs of "
        "rounds lie seconds apart instead of a start",
    )
    add("--client-core", type=int, help="pin the client to this core while it measures")
    add("--prompt-tokens", type=int, default=128)
    add("--output-tokens", type=int, default=64)
    add("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    add("--requests", type=int, nargs="+", default=[16, 64, 128], help="at each concurrency")
    add("--ready-s", type=float, default=180.0, help="wait for /health at most so long")
    add("--json", type=Path, default=Path("benchmarks/results/overhead_cpu.json"))
    add("--logs", type=Path, default=Path(tempfile.gettempdir()), help="folder of servers' logs")
    return parser.parse_args()


Found = dict[str, list[list[Level]]]
"""Name of the server -> per round, one level per concurrency."""


async def alternate(
    specs: tuple[ServerSpec, ServerSpec], args: ServerArgs, shape: Shape, given: argparse.Namespace
) -> AsyncIterator[Found]:
    """A B, then B A, and so on: a slow drift of the host cancels out. Gives all rounds so far."""
    found: Found = {spec.name: [] for spec in specs}
    async with contextlib.AsyncExitStack() as both:
        urls: dict[str, str] = {}
        if given.together:
            urls = await start_all(specs, args, given, both)
            for url in urls.values():
                await measure(url, replace(shape, requests=shape.concurrencies), seed=10_000)
        for number in range(given.rounds):
            for spec in specs if number % 2 == 0 else reversed(specs):
                async with contextlib.AsyncExitStack() as alone:
                    if given.together:
                        url = urls[spec.name]
                    else:
                        url = await alone.enter_async_context(start(spec, args, given))
                    with pinned(given.client_core):
                        levels = await measure(url, shape, seed=number)
                found[spec.name].append(levels)
                tell(number, spec.name, levels)
            yield found


async def start_all(
    specs: tuple[ServerSpec, ServerSpec],
    args: ServerArgs,
    given: argparse.Namespace,
    until: contextlib.AsyncExitStack,
) -> dict[str, str]:
    """URL of each server by name; they start at the same time and are gone with ``until``."""
    async with asyncio.TaskGroup() as starting:
        tasks = {
            spec.name: starting.create_task(until.enter_async_context(start(spec, args, given)))
            for spec in specs
        }
    return {name: task.result() for name, task in tasks.items()}


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """The client on one core while the block lasts; servers were started before and stay free."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def start(
    spec: ServerSpec, args: ServerArgs, given: argparse.Namespace
) -> contextlib.AbstractAsyncContextManager[str]:
    return serving(spec, args, given.logs / f"overhead-{spec.name}.log", given.ready_s)


def tell(number: int, name: str, levels: list[Level]) -> None:
    print(f"round {number + 1} {name}")
    for level in levels:
        print(
            f"  {level.concurrency:3d} users: TTFT {level.ttft_median_ms:.1f} ms, TPOT "
            f"{level.tpot_median_ms:.2f} ms, {level.output_tokens_s:.0f} tokens/s, client "
            f"{level.client.cpu_share:.0%} of a core, late {level.client.loop_lag_p99_ms:.1f} ms",
            flush=True,
        )


def main() -> None:
    given = read_arguments()
    environment = dict(pair.split("=", 1) for pair in given.env)
    first, second = (parse_server(text, environment) for text in given.servers)
    args = ServerArgs(
        given.model or demo_model(), given.engine_args, given.plain_args, given.pool_args
    )
    shape = Shape(
        given.prompt_tokens, given.output_tokens, tuple(given.concurrency), tuple(given.requests)
    )
    asyncio.run(run((first, second), args, shape, given))


async def run(
    specs: tuple[ServerSpec, ServerSpec], args: ServerArgs, shape: Shape, given: argparse.Namespace
) -> None:
    """Keep the figures after every round: a run that is cut off is still worth its rounds."""
    names = (specs[0].name, specs[1].name)
    source = provenance(command())
    async for found in alternate(specs, args, shape, given):
        against = ratios(found[names[0]], found[names[1]])
        document = {
            **source,
            "servers": names,
            "together": given.together,
            "shape": asdict(shape),
            "ratios": {str(users): figures for users, figures in against.items()},
            "rounds": {
                name: [[asdict(level) for level in levels] for levels in rounds]
                for name, rounds in found.items()
            },
        }
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(document, indent=2) + "\n")
        print("\n".join(sentences(against, names)), flush=True)


def command() -> list[str]:
    """As typed."""
    return ["python", "-m", "benchmarks.overhead", *sys.argv[1:]]


if __name__ == "__main__":
    main()
