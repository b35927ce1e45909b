"""The figures of one run, with the words of ``vllm bench serve`` where it has one."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict

import numpy as np

from dynaserve.bench.observation import Observation
from dynaserve.bench.slo import Slos

METRICS = ("ttft", "tpot", "itl", "e2el", "tbt_p99_of_request")
STATISTICS = ("mean", "median", "p90", "p99")


class ClassFigures(TypedDict):
    """One traffic class; shares are fractions."""

    requests: int
    attainment: float
    ttft_attainment: float
    tbt_attainment: float


class Figures(TypedDict):
    """Offered rate and goodput are per second of ``span_s``, in which the requests were due;
    throughput is per second of ``busy_s``, which ends with the last token. Times in milliseconds.

    ``times`` holds ``<statistic>_<metric>_ms`` of completed requests: ``mean_ttft_ms``,
    ``p99_itl_ms`` (gaps between chunks), ``p99_tbt_p99_of_request_ms`` and so on.
    """

    requests: int
    completed: int
    refused: int
    failed: int
    unfinished: int
    failures: dict[str, int]
    inexact: int
    span_s: float
    busy_s: float
    offered_rps: float
    request_throughput: float
    output_throughput: float
    total_token_throughput: float
    goodput_rps: float
    goodput_output_tokens_s: float
    attainment: float
    ttft_attainment: float
    tbt_attainment: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tbt_p50_ms: float
    tbt_p99_ms: float
    tokens_per_chunk: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None
    mean_retry_after_s: float | None
    times: dict[str, float]
    classes: dict[str, ClassFigures]


def figures(observations: Iterable[Observation], slos: Slos, span_s: float) -> Figures:
    """Judge the measured requests; they were due within ``span_s`` seconds."""
    seen = [each for each in observations if each.measured]
    done = [each for each in seen if each.outcome == "ok"]
    good = [each for each in done if slos.of(each.request.traffic_class).is_met(each)]
    outcomes = Counter(each.outcome for each in seen)
    token_gaps = np.asarray([gap for each in done for gap in each.token_gaps_s()]) * 1e3
    ttft = milliseconds(each.ttft_s for each in done)
    busy_s = _busy_s(seen, span_s)
    output_tokens = sum(each.tokens for each in done)
    prompt_tokens = sum(each.request.prompt_tokens for each in done)
    return Figures(
        requests=len(seen),
        completed=outcomes["ok"],
        refused=outcomes["refused"],
        failed=outcomes["failed"],
        unfinished=outcomes["unfinished"],
        failures=dict(
            Counter(each.detail for each in seen if each.outcome == "failed").most_common(10)
        ),
        inexact=sum(not each.exact for each in done),
        span_s=span_s,
        busy_s=busy_s,
        offered_rps=len(seen) / span_s,
        request_throughput=len(done) / busy_s,
        output_throughput=output_tokens / busy_s,
        total_token_throughput=(output_tokens + prompt_tokens) / busy_s,
        goodput_rps=len(good) / span_s,
        goodput_output_tokens_s=sum(each.tokens for each in good) / span_s,
        **_attainment(seen, slos),
        ttft_p50_ms=percentile(ttft, 50),
        ttft_p99_ms=percentile(ttft, 99),
        tbt_p50_ms=percentile(token_gaps, 50),
        tbt_p99_ms=percentile(token_gaps, 99),
        tokens_per_chunk=output_tokens / max(sum(len(each.chunk_s) for each in done), 1),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cached_tokens=_total([each.cached_tokens for each in done]),
        mean_retry_after_s=_mean([each.retry_after_s for each in seen]),
        times=times(done),
        classes={
            name: ClassFigures(requests=len(of_class), **_attainment(of_class, slos))
            for name, of_class in _by_class(seen).items()
        },
    )


class _Attainment(TypedDict):
    attainment: float
    ttft_attainment: float
    tbt_attainment: float


def _attainment(seen: Sequence[Observation], slos: Slos) -> _Attainment:
    """Shares of all requests: what was refused or failed counts as missed."""

    def share(met: Callable[[Observation], bool]) -> float:
        return sum(each.outcome == "ok" and met(each) for each in seen) / max(len(seen), 1)

    return _Attainment(
        attainment=share(lambda each: slos.of(each.request.traffic_class).is_met(each)),
        ttft_attainment=share(lambda each: slos.of(each.request.traffic_class).meets_ttft(each)),
        tbt_attainment=share(lambda each: slos.of(each.request.traffic_class).meets_tbt(each)),
    )


def times(done: Sequence[Observation]) -> dict[str, float]:
    """Mean, median, P90 and P99 of each metric, milliseconds; NaN where there is no value."""
    values = {
        "ttft": milliseconds(each.ttft_s for each in done),
        "tpot": milliseconds(each.tpot_s for each in done),
        "itl": milliseconds(gap for each in done for gap in each.chunk_gaps_s()),
        "e2el": milliseconds(each.e2el_s for each in done),
        "tbt_p99_of_request": milliseconds(each.tbt_p99_s for each in done if each.tokens > 1),
    }
    return {
        f"{statistic}_{metric}_ms": STATISTIC[statistic](values[metric])
        for metric in METRICS
        for statistic in STATISTICS
    }


def milliseconds(seconds: Iterable[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds to milliseconds, NaN left out."""
    return np.asarray([1e3 * value for value in seconds if not math.isnan(value)], dtype=float)


def percentile(values: np.ndarray[tuple[int], np.dtype[np.float64]], rank: float) -> float:
    return float(np.percentile(values, rank)) if len(values) else math.nan


def mean(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


STATISTIC: dict[str, Callable[[np.ndarray[tuple[int], np.dtype[np.float64]]], float]] = {
    "mean": mean,
    "median": lambda values: percentile(values, 50),
    "p90": lambda values: percentile(values, 90),
    "p99": lambda values: percentile(values, 99),
}


def _busy_s(seen: Sequence[Observation], span_s: float) -> float:
    """From the first request due to the last token seen."""
    ends = [each.chunk_s[-1] for each in seen if each.chunk_s]
    if not ends:
        return span_s
    return max(ends) - min(each.due_s for each in seen) or span_s


def _by_class(seen: Sequence[Observation]) -> dict[str, list[Observation]]:
    classes: dict[str, list[Observation]] = {}
    for each in seen:
        classes.setdefault(each.request.traffic_class, []).append(each)
    return classes


def _total(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
