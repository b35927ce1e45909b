"""The load of each cell of the goodput comparison: trace, rate, and which systems."""

from dataclasses import dataclass

SYSTEMS = (
    "colocated/static:8192",
    "colocated/static:1024",
    "colocated/slo",
    "disaggregated:1p1d/slo",
    "dynaserve/slo",
)


@dataclass(frozen=True)
class Cell:
    """One load: requests a second over two GPUs of the 14B shape on H200, and its name."""

    name: str
    traces: tuple[str, ...]
    rate_rps: dict[int, float]
    """TBT SLO in ms -> offered rate, near what the simulation gives `dynaserve` there."""


CELLS = (
    Cell("code", ("azure2023_code",), {100: 18.0, 50: 15.0}),
    Cell("conv", ("azure2023_conv",), {100: 25.0, 50: 22.0}),
    Cell("summarization", ("lengths_arxiv_summarization",), {100: 12.5, 50: 11.0}),
    Cell("reasoning", ("servegen_reasoning_20min",), {100: 10.0, 50: 8.0}),
    Cell(
        "hybrid",
        ("azure2023_code", "azure2023_conv", "lengths_arxiv_summarization"),
        {100: 17.0, 50: 14.0},
    ),
)
