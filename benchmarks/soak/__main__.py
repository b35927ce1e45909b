"""``python -m benchmarks.soak [--requests 1000]``: starts a pool, loads it, looks what is left."""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Annotated

import psutil
import typer

from benchmarks.soak.load import make_load
from benchmarks.soak.run import Soak, SoakResult
from dynaserve.local_pool import LocalPool, PoolSettings
from dynaserve.testing import free_port
from shared.bus_nats import NatsBus
from shared.subjects import Subjects

RESULT = Path(__file__).parents[1] / "results" / "soak_cpu.json"
VOCABULARY = range(10, 2000)
POOL = "soak"


def main(
    requests: Annotated[int, typer.Option(help="How many requests.")] = 1000,
    concurrency: Annotated[int, typer.Option(help="How many at once.")] = 16,
    seed: Annotated[int, typer.Option(help="Another seed, another load.")] = 1,
    json_file: Annotated[Path, typer.Option("--json", help="Where the result goes.")] = RESULT,
) -> None:
    """Exits with 1 when a request failed or anything was not given back."""
    result, left = asyncio.run(soak(requests, concurrency, seed))
    document = {
        **result.model_dump(mode="json"),
        "left_after_shutdown": left,
        "command": f"python -m benchmarks.soak --requests {requests} "
        f"--concurrency {concurrency} --seed {seed}",
    }
    json_file.write_text(json.dumps(document, indent=2) + "\n")
    print(
        f"{result.requests} requests: {result.completed} completed, {result.cancelled} cancelled, "
        f"failed {result.failed}; handoffs {result.handoffs}; "
        f"leaks {result.leaks}; left after shutdown {left}"
    )
    if not result.is_clean or left:
        raise typer.Exit(1)


async def soak(requests: int, concurrency: int, seed: int) -> tuple[SoakResult, list[str]]:
    """The result, and the processes that were left when the pool had ended."""
    with tempfile.TemporaryDirectory(prefix="dynaserve-soak-") as folder:
        settings = PoolSettings(
            instances=2,
            port=free_port(),
            pool=POOL,
            log_folder=Path(folder),
            engine_args=["--max-num-batched-tokens=64"],
        )
        async with LocalPool(settings) as pool:
            bus = await NatsBus.connect(pool.nats_url, "soak")
            try:
                ids = [name for name in pool.children if name.startswith("instance")]
                load = list(make_load(requests, seed, VOCABULARY))
                run = Soak(pool.url, "demo", bus, Subjects(POOL), ids)
                result = await run.run(load, concurrency)
            finally:
                await bus.close()
            family = psutil.Process().children(recursive=True)
    left = [f"process {each.pid}" for each in family if each.is_running() and not is_zombie(each)]
    return result, left


def is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


if __name__ == "__main__":
    typer.run(main)
