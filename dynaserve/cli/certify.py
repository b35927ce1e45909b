"""``dynaserve certify``: proof that a cut changes nothing, on a running pool or one of its own."""

import asyncio
import contextlib
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from dynaserve.certify.client import PoolClient
from dynaserve.certify.report import render
from dynaserve.certify.run import Certification, Options, Progress
from dynaserve.certify.tally import Certificate
from dynaserve.local_pool import LocalPool, PoolSettings
from shared.errors import NoInstance

CHUNK_TOKENS = 64
"""Small steps in a pool of our own, so that the longer prompts take several."""


def certify(
    url: Annotated[
        str | None, typer.Option(help="Gateway of the pool; without it a pool is started.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the certificate to this file as well.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="A grid of about 40 cases.")] = False,
    seed: Annotated[int, typer.Option(help="Another seed, other prompts.")] = 1,
    concurrency: Annotated[int, typer.Option(min=2, help="Requests at once.")] = 16,
    logprob_tolerance: Annotated[
        float, typer.Option(min=0.0, help="Log-probabilities may differ by this much.")
    ] = Options.logprob_tolerance,
) -> None:
    """Cut requests everywhere and compare with the uncut ones, token by token.

    Exits with 1 when anything differs, or was not cut as it should have been.
    """
    options = Options(quick, seed, concurrency, logprob_tolerance)
    console = Console()
    try:
        certificate = asyncio.run(_certify(url, options, console))
    except httpx.TransportError as error:
        raise NoInstance(f"no gateway answers at {url}: {error!r}") from error
    console.print(render(certificate))
    if json_file is not None:
        json_file.write_text(certificate.model_dump_json(indent=2) + "\n")
    if not certificate.holds:
        raise typer.Exit(1)


async def _certify(url: str | None, options: Options, console: Console) -> Certificate:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    async with _pool(url, console) as base_url, PoolClient(base_url) as client:
        with Bars(*columns, console=console, disable=not sys.stdout.isatty()) as bars:
            return await Certification(client, options, _shown_in(bars)).run()


@contextlib.asynccontextmanager
async def _pool(url: str | None, console: Console) -> AsyncIterator[str]:
    """The pool to certify: the one at ``url``, or two instances of the demo model of our own."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="dynaserve-certify-") as folder:
        settings = PoolSettings(
            instances=2,
            port=free_port(),
            log_folder=Path(folder),
            engine_args=[f"--max-num-batched-tokens={CHUNK_TOKENS}"],
        )
        console.print("Starting a pool of two instances.")
        async with LocalPool(settings) as pool:
            yield pool.url


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _shown_in(bars: Bars) -> Progress:
    tasks = {}

    def show(stage: str, done: int, of: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=of)
        bars.update(tasks[stage], completed=done)

    return show
