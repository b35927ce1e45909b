"""What a pool could do if work flowed: a fluid ideal, in which decodes move or stay.

    python -m benchmarks.simulation.fluid --traces DIR --instances 2 [--slo-tbt-ms 25] [--out FILE]

Instances with decodes spend the rest of their steps on prompts; the others run steps of 8,192
tokens. Prompts are one queue by deadline, served by all instances at once; those past their
deadline are dropped. Capacity: the highest rate at which 90 % of requests have their first token
in time (gaps between tokens are in time by construction). Where decodes sit:

- "moving": on the fewest instances that hold them while prompts wait, on all alike while none do;
  it costs nothing.
- "fullest": each stays where it started, on the fullest instance with room for it.
- "soonest empty": each stays where it started, with room for it where that keeps an instance from
  being empty for the shortest time. It knows when each decode will end.
- "spread": each stays where it started, on the emptiest instance.

Decodes take the whole TBT SLO a token while prompts wait, and are as fast as they can be while none
do. None is a bound: who yields when not all can be in time is left to chance here, and engines that
let the longest prompts yield can do better; so could a cleverer placement of decodes that stay.
"""

from __future__ import annotations

import heapq
import math
import sys
from argparse import ArgumentParser
from bisect import insort
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.simulation.sweep import loads, scenario, tell
from dynaserve.sim.capacity import Scenario
from dynaserve.sim.simulator import SimSettings
from dynaserve.sim.traces import SimRequest
from shared.latency_model import LatencyProfile

STEP_MS = 5.0
GOAL = 0.9


class Decodes:
    """Where decodes sit. Lists are by instance; a decode that moves sits on all alike."""

    def __init__(self, settings: SimSettings, placement: str) -> None:
        model, self._number = settings.model, settings.instances
        self._slo_ms, self._base_ms = 1e3 * settings.slo_tbt_s, model.base_ms
        self._whole = 1.0 - model.base_ms / (model.base_ms + model.prompt_ms(8192, 0))
        self._room_ms = self._slo_ms - model.base_ms
        self._moving, self._choose = placement == "moving", CHOICES[placement]
        places = 1 if self._moving else self._number
        self._loads_ms = [0.0] * places
        self._steps = [0.0] * places
        self._last = [0.0] * places
        self._ends: list[list[tuple[float, float]]] = [[] for _ in range(places)]

    def join(self, tokens: int, part_ms: float) -> None:
        indices = range(len(self._loads_ms))
        roomy = [i for i in indices if self._loads_ms[i] + part_ms <= self._room_ms]
        index = min(roomy or indices, key=lambda i: self._rank(i, tokens))
        end = self._steps[index] + tokens
        self._loads_ms[index] += part_ms
        self._last[index] = max(self._last[index], end)
        heapq.heappush(self._ends[index], (end, part_ms))

    def _rank(self, index: int, tokens: int) -> tuple[float, float]:
        left = max(self._last[index] - self._steps[index], 0.0)
        return self._choose(max(tokens - left, 0.0), self._loads_ms[index])

    def prompt_speed(self) -> float:
        """Work on prompts that the pool does in a unit of time."""
        total_ms = sum(self._loads_ms)
        holders = sum(1 for ends in self._ends if ends)
        if self._moving and holders:
            holders = min(self._number, max(math.ceil(total_ms / self._room_ms), 1))
        speed = (self._number - holders) * self._whole
        return max(speed + (holders * self._room_ms - total_ms) / self._slo_ms, 0.0)

    def advance(self, took_ms: float, hurry_ms: float) -> None:
        """Tokens come at the SLO while prompts wait; as fast as they can in the ``hurry_ms`` that
        prompts leave, those that move on all instances alike."""
        for index, ends in enumerate(self._ends):
            load_ms = self._loads_ms[index] / (self._number if self._moving else 1)
            fastest_ms = min(self._base_ms + load_ms, self._slo_ms)
            self._steps[index] += (took_ms - hurry_ms) / self._slo_ms + hurry_ms / fastest_ms
            while ends and ends[0][0] <= self._steps[index]:
                self._loads_ms[index] -= heapq.heappop(ends)[1]


CHOICES: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "moving": lambda longer_ms, load_ms: (0.0, load_ms),
    "fullest": lambda longer_ms, load_ms: (0.0, -load_ms),
    "soonest empty": lambda longer_ms, load_ms: (longer_ms, -load_ms),
    "spread": lambda longer_ms, load_ms: (0.0, load_ms),
}
"""(how much longer an instance would hold decodes, their part of a step there) -> rank."""


def attainment(planned: Scenario, rate: float, placement: str) -> float:
    """Share of the requests after the warm-up whose prompt is done in time."""
    settings = planned.settings
    requests = planned.arrivals(rate, planned.until_s)
    queue: list[tuple[float, int, float]] = []  # deadline, number, work left
    decodes = Decodes(settings, placement)
    now_ms = 0.0
    came = done = missed = 0
    until_ms = 1e3 * planned.until_s + 5000.0
    while now_ms < until_ms:
        while came < len(requests) and 1e3 * requests[came].arrival_s <= now_ms:
            insort(queue, _work(requests[came], came, settings))
            came += 1
        whole_ms = left_ms = decodes.prompt_speed() * STEP_MS
        while queue and left_ms > 0.0:
            deadline_ms, number, work_ms = queue.pop(0)
            request = requests[number]
            measured = request.arrival_s >= planned.warmup_s
            if now_ms > deadline_ms:
                missed += measured
            elif work_ms > left_ms:
                queue.insert(0, (deadline_ms, number, work_ms - left_ms))
                left_ms = 0.0
            else:
                left_ms -= work_ms
                done += measured
                decodes.join(request.output_tokens, _decode_part_ms(request, settings))
        now_ms += STEP_MS
        decodes.advance(STEP_MS, STEP_MS * left_ms / whole_ms if whole_ms else 0.0)
    return done / max(done + missed, 1)


def _work(request: SimRequest, number: int, settings: SimSettings) -> tuple[float, int, float]:
    deadline_s = request.arrival_s + settings.slo_ttft_s
    deadline_s += settings.slo_ttft_s_per_token * request.prompt_tokens
    return 1e3 * deadline_s, number, settings.model.prompt_ms(request.prompt_tokens, 0)


def _decode_part_ms(request: SimRequest, settings: SimSettings) -> float:
    context = request.prompt_tokens + 0.5 * request.output_tokens
    return settings.model.decode_ms + settings.model.context_ms * context


def capacity(planned: Scenario, placement: str) -> float:
    low, high = 1.0 * planned.settings.instances, 16.0 * planned.settings.instances
    while high - low > 0.01 * high:
        middle = 0.5 * (low + high)
        served = attainment(planned, middle, placement) >= GOAL
        low, high = (middle, high) if served else (low, middle)
    return low


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description="Capacity if work flowed.")
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--slo-tbt-ms", type=float, default=25.0)
    parser.add_argument("--loads", nargs="*", default=["code", "conv", "summarisation", "hybrid"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    model = LatencyProfile.load().model
    settings = SimSettings(model, given.instances, slo_tbt_s=1e-3 * given.slo_tbt_ms)
    every = loads(given.traces, model)
    found = {
        placement: {
            name: round(capacity(scenario("dynaserve", name, every[name], settings), placement), 2)
            for name in given.loads
        }
        for placement in CHOICES
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
