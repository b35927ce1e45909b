"""Picture of a simulated run: TTFT and TBT distributions, instance utilisation over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynaserve.sim.report import gap_histogram
from dynaserve.sim.simulator import SimOutcome, SimSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dynaserve.sim.instance import SimInstance


def plot(outcome: SimOutcome, settings: SimSettings, out: Path, title: str) -> None:
    """Write a PNG with three panels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    ttft, tbt, busy = figure.subplots(1, 3)
    _ttft(ttft, outcome)
    _tbt(tbt, outcome, settings)
    _utilisation(busy, outcome)
    figure.suptitle(title)
    figure.savefig(out, dpi=120)


def _ttft(axes: Axes, outcome: SimOutcome) -> None:
    for met, label in ((True, "SLO met"), (False, "SLO missed")):
        values = [
            record.ttft_s
            for record in outcome.records
            if record.measured and record.first_token_s >= 0.0 and record.meets_slo() is met
        ]
        if values:
            axes.hist(
                np.maximum(values, 1e-3), bins=np.geomspace(1e-2, 1e2, 60).tolist(), label=label
            )
    axes.set(xscale="log", xlabel="TTFT (s)", ylabel="requests")
    axes.legend()


def _tbt(axes: Axes, outcome: SimOutcome, settings: SimSettings) -> None:
    values, weights = gap_histogram(outcome)
    share = np.cumsum(weights) / max(float(weights.sum()), 1.0)
    axes.plot(values, 1.0 - share)
    axes.axvline(1e3 * settings.slo_tbt_s, linestyle="--", color="grey")
    axes.set(yscale="log", ylim=(1e-5, 1.0), xlabel="TBT (ms)", ylabel="share of gaps longer")


def _utilisation(axes: Axes, outcome: SimOutcome) -> None:
    bins = np.linspace(0.0, max(outcome.end_s, 1e-9), 61)
    rows = [_busy_share(instance, bins) for instance in outcome.instances]
    image = axes.imshow(
        rows, aspect="auto", vmin=0.0, vmax=1.0, extent=(0.0, outcome.end_s, len(rows), 0.0)
    )
    axes.set(xlabel="time (s)", ylabel="instance")
    axes.figure.colorbar(image, ax=axes, label="busy")


def _busy_share(
    instance: SimInstance, bins: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> list[float]:
    """Share of each time bin the instance spent in steps (a step counts where it ended)."""
    ends, lengths = np.asarray(instance.end_times_s), 1e-3 * np.asarray(instance.durations_ms)
    spent, _ = np.histogram(ends, bins=bins, weights=lengths)
    return [float(value) for value in np.minimum(spent / np.diff(bins), 1.0)]
