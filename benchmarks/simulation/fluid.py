"""What a pool could do if decodes moved between instances at no cost: a fluid ideal.

    python -m benchmarks.simulation.fluid --traces DIR --instances 2 [--slo-tbt-ms 25] [--out FILE]

Decodes always sit on the fewest instances that hold them, each of which spends the rest of its
steps on prompts; the others run steps of 8,192 tokens. Prompts are one queue by deadline, served by
all instances at once; those past their deadline are dropped. No policy that leaves a decode where
it started can do this. Capacity: the highest rate at which 90 % of requests have their first token
in time (gaps between tokens are in time by construction).
"""

from __future__ import annotations

import heapq
import math
import sys
from argparse import ArgumentParser
from bisect import insort
from collections.abc import Sequence
from pathlib import Path

from benchmarks.simulation.sweep import loads, scenario, tell
from dynaserve.sim.capacity import Scenario
from dynaserve.sim.simulator import SimSettings
from dynaserve.sim.traces import SimRequest
from shared.latency_model import LatencyProfile

STEP_MS = 5.0
GOAL = 0.9


def attainment(planned: Scenario, rate: float) -> float:
    """Share of the requests after the warm-up whose prompt is done in time."""
    settings, model = planned.settings, planned.settings.model
    requests = planned.arrivals(rate, planned.until_s)
    slo_ms = 1e3 * settings.slo_tbt_s
    room_ms = slo_ms - model.base_ms
    whole = 1.0 - model.base_ms / (model.base_ms + model.prompt_ms(8192, 0))
    queue: list[tuple[float, int, float]] = []  # deadline, number, work left
    ends: list[tuple[float, float]] = []  # when a decode ends, its part of a step
    now_ms = decode_ms = 0.0
    came = done = missed = 0
    until_ms = 1e3 * planned.until_s + 5000.0
    while now_ms < until_ms:
        while came < len(requests) and 1e3 * requests[came].arrival_s <= now_ms:
            insort(queue, _work(requests[came], came, settings))
            came += 1
        while ends and ends[0][0] <= now_ms:
            decode_ms -= heapq.heappop(ends)[1]
        holders = min(settings.instances, max(math.ceil(decode_ms / room_ms), int(bool(ends))))
        speed = (settings.instances - holders) * whole
        speed += holders * (1.0 - model.base_ms / slo_ms) - decode_ms / slo_ms
        left_ms = max(speed, 0.0) * STEP_MS
        while queue and left_ms > 0.0:
            deadline_ms, number, work_ms = queue.pop(0)
            measured = requests[number].arrival_s >= planned.warmup_s
            if now_ms > deadline_ms:
                missed += measured
            elif work_ms > left_ms:
                queue.insert(0, (deadline_ms, number, work_ms - left_ms))
                break
            else:
                left_ms -= work_ms
                done += measured
                part_ms = _decode_part_ms(requests[number], settings)
                decode_ms += part_ms
                heapq.heappush(ends, (now_ms + requests[number].output_tokens * slo_ms, part_ms))
        now_ms += STEP_MS
    return done / max(done + missed, 1)


def _work(request: SimRequest, number: int, settings: SimSettings) -> tuple[float, int, float]:
    deadline_s = request.arrival_s + settings.slo_ttft_s
    deadline_s += settings.slo_ttft_s_per_token * request.prompt_tokens
    return 1e3 * deadline_s, number, settings.model.prompt_ms(request.prompt_tokens, 0)


def _decode_part_ms(request: SimRequest, settings: SimSettings) -> float:
    context = request.prompt_tokens + 0.5 * request.output_tokens
    return settings.model.decode_ms + settings.model.context_ms * context


def capacity(planned: Scenario) -> float:
    low, high = 1.0 * planned.settings.instances, 16.0 * planned.settings.instances
    while high - low > 0.01 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if attainment(planned, middle) >= GOAL else (low, middle)
    return low


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description="Capacity if decodes moved at no cost.")
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--slo-tbt-ms", type=float, default=25.0)
    parser.add_argument("--loads", nargs="*", default=["code", "conv", "summarisation", "hybrid"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    model = LatencyProfile.load().model
    settings = SimSettings(model, given.instances, slo_tbt_s=1e-3 * given.slo_tbt_ms)
    every = loads(given.traces, settings)
    found = {
        name: round(capacity(scenario("dynaserve", name, every[name], settings)), 2)
        for name in given.loads
    }
    body = {
        "command": " ".join(["python -m benchmarks.simulation.fluid", *sys.argv[1:]]),
        "instances": given.instances,
        "slo_tbt_ms": given.slo_tbt_ms,
        "capacity_rps": found,
    }
    tell(body, given.out)


if __name__ == "__main__":
    main()
