"""Figures of one simulated run, as they go into JSON."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from dynaserve.sim.bound import gpu_seconds
from dynaserve.sim.record import RequestRecord
from dynaserve.sim.simulator import SimOutcome, SimSettings


class Report(TypedDict):
    """Rates per second, attainment and shares as fractions, times in milliseconds."""

    requests: int
    rate_rps: float
    goodput_rps: float
    goodput_output_tokens_s: float
    attainment: float
    ttft_attainment: float
    tbt_attainment: float
    refused: int
    ttft_p50_ms: float
    ttft_p90_ms: float
    ttft_p99_ms: float
    tbt_p50_ms: float
    tbt_p99_ms: float
    cut_share: float
    cut_inside_prompt_share: float
    bound_fraction: float
    utilisation: list[float]
    steps: int
    handoffs: int
    preemptions: int
    restarts: int


def report(outcome: SimOutcome, settings: SimSettings, span_s: float) -> Report:
    """Judge the measured requests of a finished run; ``span_s`` is the time they arrived in."""
    records = [record for record in outcome.records if record.measured]
    good = [record for record in records if record.meets_slo()]
    first = [record.ttft_s * 1e3 for record in records if record.first_token_s >= 0.0]
    ttft = np.percentile(first, [50, 90, 99]) if first else np.zeros(3)
    tbt = tbt_percentiles(outcome, (50.0, 99.0))
    number = max(len(records), 1)
    bound_s = sum(gpu_seconds(record.request, settings) for record in good)
    return Report(
        requests=len(records),
        rate_rps=len(records) / span_s,
        goodput_rps=len(good) / span_s,
        goodput_output_tokens_s=sum(r.request.output_tokens for r in good) / span_s,
        attainment=len(good) / number,
        ttft_attainment=sum(record.meets_ttft() for record in records) / number,
        tbt_attainment=sum(record.meets_tbt() for record in records) / number,
        refused=sum(record.refused for record in records),
        ttft_p50_ms=float(ttft[0]),
        ttft_p90_ms=float(ttft[1]),
        ttft_p99_ms=float(ttft[2]),
        tbt_p50_ms=tbt[0],
        tbt_p99_ms=tbt[1],
        cut_share=sum(record.cut is not None for record in records) / number,
        cut_inside_prompt_share=sum(_cut_inside(record) for record in records) / number,
        bound_fraction=bound_s / (settings.instances * span_s),
        utilisation=[i.busy_ms / max(1e3 * outcome.end_s, 1e-9) for i in outcome.instances],
        steps=outcome.steps,
        handoffs=outcome.handoffs,
        preemptions=outcome.preemptions,
        restarts=outcome.restarts,
    )


def _cut_inside(record: RequestRecord) -> bool:
    return record.cut is not None and record.cut < record.request.prompt_tokens - 1


def gap_histogram(outcome: SimOutcome) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Every gap between tokens: lengths in ms, ascending, and how often each occurred.

    A step that decoded n requests is n gaps (a restarted request's first is counted once more).
    """
    durations = [np.asarray(i.durations_ms) for i in outcome.instances]
    counts = [np.asarray(i.decode_counts, dtype=float) for i in outcome.instances]
    long_gaps = np.asarray([gap for r in outcome.records for gap in r.long_gaps_ms])
    values = np.concatenate([*durations, long_gaps])
    weights = np.concatenate([*counts, np.ones(len(long_gaps))])
    order = np.argsort(values)
    return values[order], weights[order]


def tbt_percentiles(outcome: SimOutcome, percentiles: tuple[float, ...]) -> list[float]:
    values, weights = gap_histogram(outcome)
    cumulative = np.cumsum(weights)
    if not len(cumulative) or cumulative[-1] <= 0.0:
        return [0.0 for _ in percentiles]
    at = np.searchsorted(cumulative, np.asarray(percentiles) / 100.0 * cumulative[-1])
    return [float(values[min(index, len(values) - 1)]) for index in at]
