"""What one sees while a run goes on: a bar in time, and the counts so far."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dynaserve.bench.load import Schedule
from dynaserve.bench.observation import Observation
from dynaserve.bench.run import Run

REFRESH_S = 0.5


class Board:
    """Counts what happens and draws it twice a second, on the event loop of the run itself."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title = ""
        self._counts: Counter[str] = Counter()
        self._total = 0
        self._until_s = 0.0
        self._began_s = 0.0
        self._live: Live | None = None

    def begins(self, title: str, schedule: Schedule) -> None:
        self._title = title
        self._counts.clear()
        self._total = len(schedule.requests)
        self._until_s = schedule.until_s
        self._began_s = asyncio.get_running_loop().time()
        if schedule.capped_requests:
            self._console.print(
                f"{schedule.capped_requests} of {self._total} requests are longer than the model "
                f"allows: {schedule.capped_tokens} tokens cut off",
                style="yellow",
            )

    def sent(self, seen: Observation) -> None:
        self._counts["sent"] += 1

    def done(self, seen: Observation, good: bool) -> None:
        self._counts[seen.outcome] += 1
        self._counts["good"] += good

    def ended(self, run: Run) -> None:
        """One line that stays."""
        self._console.print(summary_line(self._title, run), highlight=False)

    @contextlib.asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Draw while the block lasts; on what is no terminal, only the lines that stay."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            drawing = asyncio.create_task(self._draw(live), name="progress")
            try:
                yield
            finally:
                drawing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await drawing

    async def _draw(self, live: Live) -> None:
        while True:
            live.update(self._picture(), refresh=True)
            await asyncio.sleep(REFRESH_S)

    def _picture(self) -> Table:
        passed_s = min(asyncio.get_running_loop().time() - self._began_s, self._until_s)
        counts = self._counts
        done = sum(counts[outcome] for outcome in ("ok", "refused", "failed"))
        picture = Table.grid(padding=(0, 1))
        picture.add_row(
            Text(self._title, style="bold"),
            ProgressBar(total=max(self._until_s, 1e-9), completed=passed_s, width=24),
            Text(f"{passed_s:.0f}/{self._until_s:.0f} s"),
            Text(
                f"sent {counts['sent']}/{self._total}  running {counts['sent'] - done}  "
                f"in SLO {counts['good']}  missed {counts['ok'] - counts['good']}  "
                f"refused {counts['refused']}  failed {counts['failed']}"
            ),
        )
        return picture


def summary_line(title: str, run: Run) -> Text:
    """The run in one line, with a second one where the client is not to be trusted."""
    found = run.figures
    text = Text(
        f"{title}: {found['attainment']:.1%} of {found['requests']} in SLO, goodput "
        f"{found['goodput_rps']:.2f}/s, TTFT {found['ttft_p50_ms']:.0f}/{found['ttft_p99_ms']:.0f}"
        f" ms, TBT {found['tbt_p50_ms']:.1f}/{found['tbt_p99_ms']:.1f} ms (P50/P99)"
    )
    lost = {name: found[name] for name in ("refused", "failed", "unfinished")}
    if any(lost.values()):
        text.append(", " + ", ".join(f"{n} {name}" for name, n in lost.items() if n), "red")
    if run.cut_short:
        text.append(" (stopped early: too many missed)", "yellow")
    for reason in run.distrust:
        text.append(f"\n  client bottleneck: {reason}", "bold red")
    return text
