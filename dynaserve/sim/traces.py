"""Request streams for the simulator: recorded traces, hybrids of them, synthetic lengths.

A trace is a CSV (plain or .gz) with the columns ``arrival_s,prompt_tokens,output_tokens`` and, if
wanted, ``prefix_id,prefix_tokens`` (a shared prompt prefix). Rates are scaled by stretching time.
"""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple


class TraceRow(NamedTuple):
    """One recorded request; ``arrival_s`` is None where the source has no times."""

    arrival_s: float | None
    prompt_tokens: int
    output_tokens: int
    prefix_id: str = ""
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SimRequest:
    """A request that will arrive. The simulator knows its output length, the policies do not."""

    request_id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    traffic_class: str
    prefix_id: str = ""
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """Rows of one kind of traffic."""

    name: str
    rows: tuple[TraceRow, ...]

    @property
    def recorded_rate(self) -> float | None:
        """Requests per second as recorded, None without times."""
        last, first = self.rows[-1].arrival_s, self.rows[0].arrival_s
        if last is None or first is None or last <= first:
            return None
        return (len(self.rows) - 1) / (last - first)


def read_trace(path: Path) -> Trace:
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    with opened as lines:
        rows = tuple(_row(row) for row in csv.DictReader(lines))
    if not rows:
        raise ValueError(f"{path} holds no requests")
    return Trace(name, rows)


def _row(row: dict[str, str]) -> TraceRow:
    return TraceRow(
        float(row["arrival_s"]) if row["arrival_s"] else None,
        max(int(row["prompt_tokens"]), 1),
        max(int(row["output_tokens"]), 1),
        row.get("prefix_id") or "",
        int(row.get("prefix_tokens") or 0),
    )


def synthetic_trace(
    prompt_tokens: int, output_tokens: int, *, spread: float = 0.5, num: int = 4096, seed: int = 0
) -> Trace:
    """Log-normal lengths around two medians; ``spread`` is the sigma of the logarithm."""
    draw = random.Random(seed)
    rows = tuple(
        TraceRow(
            None,
            max(1, int(prompt_tokens * draw.lognormvariate(0.0, spread))),
            max(1, int(output_tokens * draw.lognormvariate(0.0, spread))),
        )
        for _ in range(num)
    )
    return Trace(f"synthetic_{prompt_tokens}_{output_tokens}", rows)


def recorded_arrivals(trace: Trace, rate: float, until_s: float) -> list[SimRequest]:
    """The trace's own arrival pattern, its first rate x until rows stretched over ``until_s``.

    It starts over when it is used up.
    """
    recorded = trace.recorded_rate
    if recorded is None:
        raise ValueError(f"{trace.name} has no arrival times: use Poisson arrivals")
    lap_s = len(trace.rows) / recorded
    times = [
        (trace.rows[index % len(trace.rows)].arrival_s or 0.0) + index // len(trace.rows) * lap_s
        for index in range(round(rate * until_s) + 1)
    ]
    stretch = until_s / (times[-1] - times[0])
    return [
        _request(trace.name, index, (at_s - times[0]) * stretch, row)
        for index, (at_s, row) in enumerate(zip(times[:-1], _cycle(trace.rows), strict=False))
    ]


def poisson_arrivals(
    trace: Trace, rate: float, until_s: float, seed: int = 0, *, burstiness: float = 1.0
) -> list[SimRequest]:
    """The trace's lengths in order, Poisson arrivals. One seed gives one pattern at any rate."""
    rows = _cycle(trace.rows)
    return [
        _request(trace.name, index, at_s, next(rows))
        for index, at_s in enumerate(_arrival_times(rate, until_s, seed, burstiness))
    ]


def hybrid_arrivals(
    traces: Sequence[Trace],
    rate: float,
    until_s: float,
    *,
    window_s: float = 15.0,
    seed: int = 0,
    burstiness: float = 1.0,
    shares: Sequence[float] | None = None,
) -> list[SimRequest]:
    """Poisson arrivals whose kind of traffic changes every ``window_s`` seconds.

    ``shares``: relative arrival rate in each kind's windows (default: all alike); ``rate`` is the
    mean over all windows.
    """
    rows = [_cycle(trace.rows) for trace in traces]
    weights = list(shares or [1.0] * len(traces))
    mean = sum(weights) / len(weights)
    requests: list[SimRequest] = []
    # One stream of arrivals per unit of work, run through the integral of the windows' rates.
    window, window_s_used = 0, 0.0
    last = 0.0
    for work in _arrival_times(rate, until_s * len(weights), seed, burstiness):
        left = work - last
        last = work
        while True:
            kind = window % len(traces)
            speed = weights[kind] / mean
            if window_s_used + left / speed < window_s:
                window_s_used += left / speed
                break
            left -= (window_s - window_s_used) * speed
            window, window_s_used = window + 1, 0.0
        at_s = window * window_s + window_s_used
        if at_s >= until_s:
            break
        requests.append(_request(traces[kind].name, len(requests), at_s, next(rows[kind])))
    return requests


def _arrival_times(rate: float, until_s: float, seed: int, burstiness: float) -> Iterator[float]:
    """Gamma-distributed gaps of shape ``burstiness``: 1 is Poisson, less comes in bursts."""
    draw = random.Random(seed)

    def gap_s() -> float:
        if burstiness == 1.0:
            return draw.expovariate(1.0) / rate
        return draw.gammavariate(burstiness, 1.0 / burstiness) / rate

    at_s = gap_s()
    while at_s < until_s:
        yield at_s
        at_s += gap_s()


def truncate(requests: Sequence[SimRequest], max_model_len: int) -> list[SimRequest]:
    """Requests cut to what the model can hold (as the gateway would refuse longer ones)."""
    return [
        replace(
            request,
            prompt_tokens=min(request.prompt_tokens, max_model_len - 2),
            output_tokens=min(
                request.output_tokens,
                max_model_len - min(request.prompt_tokens, max_model_len - 2),
            ),
        )
        for request in requests
    ]


def _cycle(rows: Sequence[TraceRow]) -> Iterator[TraceRow]:
    while True:
        yield from rows


def _request(kind: str, index: int, at_s: float, row: TraceRow) -> SimRequest:
    return SimRequest(
        f"{kind}-{index}",
        at_s,
        row.prompt_tokens,
        row.output_tokens,
        kind,
        row.prefix_id,
        row.prefix_tokens,
    )
