"""From traces to the requests of a run: arrivals, scaled lengths, shared prefixes. Pure."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dynaserve.sim.traces import (
    SimRequest,
    Trace,
    hybrid_arrivals,
    poisson_arrivals,
    read_trace,
    recorded_arrivals,
    synthetic_trace,
    truncate,
)
from shared.errors import InvalidRequest

Arrivals = Literal["auto", "recorded", "poisson"]


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent. More than one trace makes a hybrid: windows of each in turn."""

    traces: tuple[Trace, ...]
    arrivals: Arrivals = "auto"
    burstiness: float = 1.0
    window_s: float = 15.0
    length_scale: float = 1.0
    max_model_len: int | None = None
    shared_prefix_tokens: int = 0
    num_shared_prefixes: int = 1
    seed: int = 0

    @property
    def is_recorded(self) -> bool:
        """The traces' own arrival pattern is used, stretched to the rate."""
        if self.arrivals != "auto":
            return self.arrivals == "recorded"
        return len(self.traces) == 1 and self.recorded_rate is not None and self.burstiness == 1.0

    @property
    def recorded_rate(self) -> float | None:
        return self.traces[0].recorded_rate if len(self.traces) == 1 else None


@dataclass(frozen=True, slots=True)
class Schedule:
    """The requests of one run in order of arrival, and what was cut off to fit the model."""

    requests: tuple[SimRequest, ...]
    until_s: float
    capped_requests: int = 0
    capped_tokens: int = 0


def read_load_trace(name: str) -> Trace:
    """A trace file, or ``synthetic:PROMPT:OUTPUT`` for log-normal lengths around two medians."""
    if not name.startswith("synthetic:"):
        path = Path(name)
        if not path.is_file():
            raise InvalidRequest(f"no trace at {name}", "trace")
        try:
            return read_trace(path)
        except (ValueError, KeyError, OSError) as error:
            raise InvalidRequest(f"{name} is not a trace: {error!r}", "trace") from error
    try:
        prompt, output = (int(part) for part in name.split(":")[1:])
    except ValueError as error:
        raise InvalidRequest(f"not synthetic:PROMPT:OUTPUT: {name}", "trace") from error
    return synthetic_trace(prompt, output)


def check_load(load: Load, rate: float | None) -> None:
    """Raises InvalidRequest for options that contradict each other or would have no effect."""
    if load.arrivals == "recorded" and len(load.traces) > 1:
        raise InvalidRequest("a hybrid of traces has Poisson arrivals", "arrivals")
    if load.arrivals == "recorded" and load.recorded_rate is None:
        raise InvalidRequest(f"{load.traces[0].name} has no arrival times", "arrivals")
    if load.arrivals == "recorded" and load.burstiness != 1.0:
        raise InvalidRequest("recorded arrivals have their own burstiness", "burstiness")
    if rate is None and load.recorded_rate is None:
        raise InvalidRequest("this load has no rate of its own: give one", "request_rate")


def make_schedule(load: Load, rate: float | None, until_s: float) -> Schedule:
    """The same load, rate and seed give the same schedule, for every system compared."""
    requests = _lengthened(_arriving(load, rate, until_s), load.length_scale)
    requests = with_shared_prefixes(
        requests, load.shared_prefix_tokens, load.num_shared_prefixes, load.seed
    )
    if load.max_model_len is None:
        return Schedule(tuple(requests), until_s)
    fitting = truncate(requests, load.max_model_len)
    lost = [
        before.prompt_tokens + before.output_tokens - after.prompt_tokens - after.output_tokens
        for before, after in zip(requests, fitting, strict=True)
    ]
    return Schedule(tuple(fitting), until_s, sum(n > 0 for n in lost), sum(lost))


def _arriving(load: Load, rate: float | None, until_s: float) -> list[SimRequest]:
    rate = rate or load.recorded_rate
    check_load(load, rate)
    assert rate is not None
    if load.is_recorded:
        return recorded_arrivals(load.traces[0], rate, until_s)
    if len(load.traces) == 1:
        return poisson_arrivals(
            load.traces[0], rate, until_s, load.seed, burstiness=load.burstiness
        )
    return hybrid_arrivals(
        load.traces,
        rate,
        until_s,
        window_s=load.window_s,
        seed=load.seed,
        burstiness=load.burstiness,
    )


def _lengthened(requests: Sequence[SimRequest], scale: float) -> list[SimRequest]:
    """Lengths times ``scale``, at least one token each."""
    return [
        replace(
            request,
            prompt_tokens=max(1, round(request.prompt_tokens * scale)),
            output_tokens=max(1, round(request.output_tokens * scale)),
            prefix_tokens=round(request.prefix_tokens * scale),
        )
        for request in requests
    ]


def with_shared_prefixes(
    requests: Sequence[SimRequest], tokens: int, number: int, seed: int
) -> list[SimRequest]:
    """The first ``tokens`` of each prompt come from one of ``number`` prefixes; lengths stay."""
    if tokens <= 0:
        return list(requests)
    draw = random.Random(f"{seed}:prefixes")
    return [
        replace(
            request,
            prefix_id=f"shared-{draw.randrange(number)}",
            prefix_tokens=min(tokens, request.prompt_tokens - 1),
        )
        for request in requests
    ]
