"""``dynaserve up``: a whole pool on this machine, in the foreground."""

import asyncio
import signal
import time
from collections.abc import Sequence

from rich.console import Console

from dynaserve.local_pool import LocalPool, PoolSettings
from dynaserve.local_pool.settings import read_settings
from shared.errors import DynaServeError

console = Console()


def up(arguments: Sequence[str]) -> None:
    """Serve until Ctrl-C or SIGTERM; exits with status 1 when the pool does not start."""
    settings = read_settings(arguments)
    try:
        asyncio.run(_serve(settings))
    except DynaServeError as error:
        raise SystemExit(f"dynaserve up: {error}") from error


async def _serve(settings: PoolSettings) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    pool = LocalPool(settings, tell=console.print)
    started_s = time.monotonic()
    console.print(f"Starting; logs in {pool.log_folder}")
    try:
        starting = asyncio.create_task(pool.start())
        if await _first(starting, stopped):
            console.print(_welcome(pool, time.monotonic() - started_s), soft_wrap=True)
            await stopped.wait()
    finally:
        console.print("Stopping.")
        await pool.stop()


async def _first(work: asyncio.Task[object], stopped: asyncio.Event) -> bool:
    """True when ``work`` is done (its error is raised), False when asked to stop before."""
    stop = asyncio.create_task(stopped.wait())
    await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if work.done():
        work.result()
        return True
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    return False


def _welcome(pool: LocalPool, took_s: float) -> str:
    model = pool.settings.model or "demo"
    body = f'{{"model": "{model}", "prompt": "Once upon a time", "max_tokens": 32}}'
    return (
        f"Ready after {took_s:.0f} s: [bold]{pool.url}/v1[/bold] (NATS {pool.nats_url})\n\n"
        f"  curl {pool.url}/v1/completions -H 'Content-Type: application/json' -d '{body}'\n\n"
        f"Live    {pool.url}/dynaserve or `dynaserve top --url {pool.url}`; "
        f"one request: dynaserve explain ID --url {pool.url}\n"
        f"Metrics {pool.url}/metrics; all parts for Prometheus: {pool.targets_file}\n"
        f"Boards  dynaserve dashboards push --grafana URL; containers: infra/compose/README.md\n"
        f"Traces  {pool.settings.otlp_endpoint or 'off; --otlp-endpoint URL turns them on'}\n\n"
        "Ctrl-C ends everything."
    )
