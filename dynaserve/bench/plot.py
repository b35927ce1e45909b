"""The picture of a benchmark: TTFT and TBT distributions with their objectives, attainment."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dynaserve.bench.figures import milliseconds
from dynaserve.bench.observation import Observation
from dynaserve.bench.report import rows
from dynaserve.bench.run import BenchResult

matplotlib.use("Agg")


def plot(result: BenchResult, path: Path) -> None:
    """Write a PNG: one curve a system, over all its repeats."""
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    ttft, tbt, attained = figure.subplots(1, 3)
    for system, seen in _completed(result).items():
        _distribution(ttft, milliseconds(each.ttft_s for each in seen).tolist(), system)
        gaps = milliseconds(gap for each in seen for gap in each.token_gaps_s())
        _distribution(tbt, gaps.tolist(), system)
    slo = result.slos.default
    _finish(ttft, "TTFT (ms)", "share of requests", slo.ttft_s)
    _finish(tbt, "TBT (ms)", "share of gaps between tokens", slo.tbt_s)
    _attainment(attained, result)
    figure.savefig(path, dpi=110, format="png")


def _completed(result: BenchResult) -> dict[str, list[Observation]]:
    seen: dict[str, list[Observation]] = {}
    for each in result.results:
        done = [one for one in each.at.observations if one.measured and one.outcome == "ok"]
        seen.setdefault(each.system, []).extend(done)
    return seen


def _distribution(axes: Axes, values: Sequence[float], label: str) -> None:
    if not values:
        return
    ordered = np.sort(np.asarray(values))
    share = np.arange(1, len(ordered) + 1) / len(ordered)
    axes.step(np.maximum(ordered, 1e-2), share, where="post", label=label)


def _finish(axes: Axes, label: str, of: str, objective_s: float) -> None:
    if math.isfinite(objective_s):
        axes.axvline(objective_s * 1e3, color="black", linestyle="--", label="SLO")
    axes.set(xlabel=label, ylabel=of, xscale="log", ylim=(0, 1.01))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def _attainment(axes: Axes, result: BenchResult) -> None:
    found = rows(result)
    names = [row["system"] for row in found]
    shares = [row["values"]["attainment"] for row in found]
    axes.barh(names, shares, height=0.5, color=[f"C{number}" for number in range(len(names))])
    axes.axvline(result.settings.ramp_goal, color="black", linestyle="--")
    axes.set(xlabel="share of requests in SLO", xlim=(0, 1.0))
    axes.invert_yaxis()
