"""The load of each cell of the goodput comparison: traces, rate, and which systems."""

from collections.abc import Sequence
from dataclasses import dataclass

FIXED_SYSTEMS = (
    "colocated/static:8192",
    "colocated/static:4096",
    "colocated/static:2048",
    "colocated/static:1024",
    "colocated/static:512",
    "disaggregated:1p1d/slo",
)
"""They do the same whatever the TBT objective is: one run is judged under each of them. (Where
prompts and decodes are apart the SLO batcher has nothing to trade.)"""

SLO_SYSTEMS = ("colocated/slo", "dynaserve/slo")
"""They work towards the TBT objective: one run for each of them."""

GPU_WINDOW_S = 2.0
"""Of a hybrid: as many windows as a run of a dozen seconds can hold."""


@dataclass(frozen=True)
class Cell:
    """One load: requests a second over two GPUs of the 14B shape on H200, and its name.

    The rate is the simulated capacity of the best system at a TBT objective of 50 ms, so that the
    systems differ at both objectives.
    """

    name: str
    traces: tuple[str, ...]
    rate_rps: float


CODE, CONV, SUMMARIES, REASONING = (
    "azure2023_code",
    "azure2023_conv",
    "lengths_arxiv_summarization",
    "servegen_reasoning_20min",
)

CELLS = (
    Cell("code", (CODE,), 17.0),
    Cell("conv", (CONV,), 22.0),
    Cell("summarization", (SUMMARIES,), 10.5),
    Cell("hybrid", (CODE, CONV, SUMMARIES, REASONING), 14.0),
    Cell("reasoning", (REASONING,), 9.0),
)


def wanted_cells(
    names: Sequence[str], objectives_ms: Sequence[int]
) -> list[tuple[Cell, tuple[int, ...]]]:
    """``NAME`` under all ``objectives_ms``, ``NAME:50,100`` under its own. Raises ValueError."""
    cells = {cell.name: cell for cell in CELLS}
    wanted = []
    for text in names:
        name, _, own = text.partition(":")
        if name not in cells:
            raise ValueError(f"no cell {name!r}; there are {', '.join(cells)}")
        wanted.append((cells[name], tuple(map(int, own.split(","))) if own else (*objectives_ms,)))
    return wanted
