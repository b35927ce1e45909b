"""``dynaserve bench``: replays traces, finds capacity, compares systems on the same engines."""

import asyncio
from collections.abc import Sequence

from rich.console import Console

from dynaserve.bench.progress import Board
from dynaserve.bench.provenance import command_line, provenance
from dynaserve.bench.report import report, to_json
from dynaserve.bench.run import BenchResult, bench
from dynaserve.bench.settings import BenchSettings, read_settings


def main(arguments: Sequence[str]) -> None:
    """Exits with status 1 when the benchmark cannot start or nothing was answered."""
    settings = read_settings(arguments)
    console = Console()
    result = asyncio.run(_watched(settings, console))
    for part in report(result):
        console.print(part)
    _keep(result)
    if not any(each.at.figures["completed"] for each in result.results):
        raise SystemExit("dynaserve bench: no request was answered")


async def _watched(settings: BenchSettings, console: Console) -> BenchResult:
    board = Board(console)
    async with board.shown():
        return await bench(settings, board)


def _keep(result: BenchResult) -> None:
    settings = result.settings
    if settings.json_file is not None:
        source = provenance(
            command_line(settings.api_key), result.endpoint.server_version, result.devices
        )
        settings.json_file.parent.mkdir(parents=True, exist_ok=True)
        settings.json_file.write_text(to_json(result, source) + "\n")
    if settings.plot is not None:
        from dynaserve.bench.plot import plot  # matplotlib takes a second to import

        plot(result, settings.plot)
