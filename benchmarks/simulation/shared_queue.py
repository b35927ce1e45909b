"""P99 TTFT if no request were placed before an instance is free for it: one queue for the pool.

    python -m benchmarks.simulation.shared_queue RESULTS.json ... --traces DIR [--out FILE]

Prompts wait in one queue by deadline, and an instance takes from it, as a step begins, what that
step can hold. Nothing is known of output lengths and nothing is cut. Placing by the least work left
comes near this only if it knows when each instance will be done; the gap between the two is what
better placing of whole requests could still win. "alone": each prompt by itself on an idle instance
without decodes, which nothing beats. Rates and the others' figures come from RESULTS.
"""

from __future__ import annotations

import heapq
import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from itertools import count
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.simulation.sweep import OURS, PATTERNS, Arrivals, loads, scenario, tell
from dynaserve.sim.capacity import Scenario
from dynaserve.sim.instance import SimInstance
from dynaserve.sim.record import RequestRecord
from dynaserve.sim.report import report
from dynaserve.sim.simulator import SimSettings, Simulator
from services.global_sched.policy import POLICIES
from services.global_sched.policy.views import PoolView
from shared.latency_model import LatencyProfile


class SharedQueue(Simulator):
    """Invariant: no instance holds more prompts than its next step begins."""

    def __init__(self, settings: SimSettings) -> None:
        super().__init__(settings, POLICIES["colocated"]())
        self._queue: list[tuple[float, int, RequestRecord]] = []
        self._numbers = count()
        self._taking = False

    def _place(self, record: RequestRecord) -> None:
        deadline_s = record.arrival_s + record.slo_ttft_s
        heapq.heappush(self._queue, (deadline_s, next(self._numbers), record))
        idle = [instance for instance in self.instances if not instance.busy]
        if idle:
            self._kick(min(idle, key=lambda instance: instance.num_decodes))

    def _kick(self, instance: SimInstance) -> None:
        if self._taking:
            return
        if not instance.busy:
            self._take(instance)
        super()._kick(instance)

    def _take(self, instance: SimInstance) -> None:
        """At least one prompt, and as many as the step has room for beside the decodes."""
        self._taking = True
        decode_ms = self.settings.model.decode_step_ms(instance.num_decodes, instance.context_sum)
        room_ms = 1e3 * self.settings.slo_tbt_s - decode_ms
        room = self.settings.model.prefill_tokens_in(room_ms, 0) if instance.num_decodes else 1
        while self._queue and instance.outstanding_tokens < room:
            self._give(heapq.heappop(self._queue)[2], instance)
        self._taking = False

    def _give(self, record: RequestRecord, instance: SimInstance) -> None:
        view = self._request_view(record)
        decision = self.policy.place(view, PoolView(self.now_s, (self._view(instance),)))
        record.decision, record.view = decision, view
        self._dispatch(record, view.num_prompt_tokens, decision)


def ttft_p99_ms(planned: Scenario, rate: float) -> float:
    settings = planned.timed()
    outcome = SharedQueue(settings).run(planned.arrivals(rate, planned.until_s))
    return report(outcome, settings, planned.duration_s)["ttft_p99_ms"]


def alone_p99_ms(planned: Scenario, rate: float) -> float:
    model, largest = planned.settings.model, planned.settings.max_num_batched_tokens
    prompts = [
        request.prompt_tokens
        for request in planned.arrivals(rate, planned.until_s)
        if request.arrival_s >= planned.warmup_s
    ]
    steps = [ceil(prompt / largest) for prompt in prompts]
    alone_ms = [
        model.base_ms * n + model.prompt_ms(p, 0) for n, p in zip(steps, prompts, strict=True)
    ]
    return float(np.percentile(alone_ms, 99))


def cell(found: dict[str, Any], arrivals: Arrivals, settings: SimSettings) -> dict[str, Any]:
    at = found["at_70_percent"]
    planned = [
        scenario("slo", found["load"], partial(arrivals, seed=seed), settings) for seed in PATTERNS
    ]
    return {
        "instances": settings.instances,
        "load": found["load"],
        "slo_tbt_ms": found["slo_tbt_ms"],
        "rate_rps": at["rate_rps"],
        "ttft_p99_ms": {
            found["best_other"]: at[found["best_other"]]["ttft_p99_ms"],
            OURS: at[OURS]["ttft_p99_ms"],
            "shared queue": fmean(ttft_p99_ms(each, at["rate_rps"]) for each in planned),
            "alone": fmean(alone_p99_ms(each, at["rate_rps"]) for each in planned),
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description="P99 TTFT if the pool had one queue.")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--loads", nargs="*", default=["hybrid"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    model = LatencyProfile.load().model
    every = loads(given.traces, model)
    body: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.simulation.shared_queue", *sys.argv[1:]]),
        "cells": [
            cell(
                found,
                every[found["load"]],
                SimSettings(model, found["instances"], slo_tbt_s=1e-3 * found["slo_tbt_ms"]),
            )
            for path in given.results
            for found in json.loads(path.read_text())["cells"]
            if found["load"] in given.loads
        ],
    }
    tell(body, given.out)


if __name__ == "__main__":
    main()
