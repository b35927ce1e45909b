"""What the SLO batcher costs per step in vLLM's own scheduler, with no model behind it.

python -m benchmarks.batcher_cost [--json FILE]

The scheduler and its KV manager are vLLM's; only the forward pass is left out (every request gets
token 7), and the scheduler's clock moves on by what it would take on the profile's machine. Own
time of a step: CPU time in ``schedule`` and ``update_from_output`` less that in vLLM's two methods
of the same names.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from dynaserve.bench.provenance import command_line, provenance
from dynaserve.demo_model import demo_model
from services.gpu_instance.engine import slo_scheduler
from services.gpu_instance.engine.launch import vllm_config
from services.gpu_instance.engine.slo_scheduler import SloBatching
from services.gpu_instance.settings import InstanceSettings
from shared.latency_model import LatencyProfile
from shared.schemas.request import Slo

BLOCK_SIZE = 16
CONTEXT_TOKENS = 512
PROMPT_TOKENS = 1500
STEPS = 600
WARMUP_STEPS = 50
GOAL_MS = 0.2


@dataclass
class Stopwatch:
    """Time spent inside vLLM's methods since the last look."""

    inside_s: float = 0.0
    own_s: list[float] = field(default_factory=list)


class ProfileClock:
    """Stands in for ``time`` in the scheduler: real time and what steps would have taken."""

    def __init__(self) -> None:
        self.steps_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.steps_s

    def time(self) -> float:
        return time.time() + self.steps_s

    def run(self, scheduler: Any) -> None:
        """The step that was scheduled last takes its time."""
        in_flight = scheduler._in_flight
        if in_flight:
            self.steps_s += 1e-3 * PROFILE.model.step_ms(in_flight[-1].shape)


CLOCK = ProfileClock()
PROFILE = LatencyProfile.load()


class _Timed:
    """Between the mixin and vLLM's scheduler: notes what vLLM's methods take."""

    watch: Stopwatch

    def schedule(self, throttle_prefills: bool = False) -> Any:
        return self._timed(super().schedule, throttle_prefills)  # type: ignore[misc]

    def update_from_output(self, scheduled: Any, made: Any) -> Any:
        return self._timed(super().update_from_output, scheduled, made)  # type: ignore[misc]

    def _timed(self, method: Any, *arguments: Any) -> Any:
        began_s = time.thread_time()
        result = method(*arguments)
        self.watch.inside_s += time.thread_time() - began_s
        return result


class TimedSync(SloBatching, _Timed, Scheduler):  # type: ignore[misc]
    """Synchronous scheduling."""


class TimedAsync(SloBatching, _Timed, AsyncScheduler):  # type: ignore[misc]
    """Asynchronous scheduling."""


def make_scheduler(kind: type[SloBatching], batcher: str) -> Any:
    settings = InstanceSettings(
        model=str(demo_model()),
        batcher=batcher,
        engine_args=[
            "--dtype=float32",
            "--max-model-len=2048",
            "--max-num-seqs=512",
            "--no-enable-prefix-caching",
        ],
    )
    config = vllm_config(settings)
    config.kv_transfer_config = None
    config.cache_config.block_size = BLOCK_SIZE
    config.cache_config.num_gpu_blocks = 65_536
    return kind(config, _kv_cache(config), StructuredOutputManager(config), BLOCK_SIZE)


def _kv_cache(config: VllmConfig) -> KVCacheConfig:
    spec = FullAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=1, head_size=16, dtype=torch.float32
    )
    groups = [KVCacheGroupSpec(["layer"], spec)]
    blocks = config.cache_config.num_gpu_blocks or 0
    return KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups)


class Load:
    """Keeps ``running`` requests decoding and, if wanted, ``waiting`` prompts in the queue."""

    def __init__(self, scheduler: Any, running: int, waiting: int) -> None:
        self.scheduler = scheduler
        self.scheduler.watch = self.watch = Stopwatch()
        self._added = 0
        for _ in range(running):
            self._add(CONTEXT_TOKENS, 1400)
        self._fill()
        assert len(scheduler.running) == running
        self._waiting = waiting

    def _fill(self) -> None:
        """Compute the prompts at once: with the SLO batcher most would wait for the first to end,
        since the profile's machine cannot decode so many in time."""
        scheduler = self.scheduler
        mode = scheduler.batcher.mode
        scheduler.batcher.set_mode(f"static:{scheduler.configured_tokens}")
        while any(request.is_prefill_chunk for request in scheduler.running) or scheduler.waiting:
            self.step()
        scheduler.batcher.set_mode(mode)

    def _add(self, prompt_tokens: int, max_tokens: int) -> None:
        self._added += 1
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        params.update_from_generation_config({}, 2)
        prompt = [self._added % 900 + 5] * prompt_tokens
        request = Request(f"r{self._added}", prompt, params, None, arrival_time=CLOCK.time())
        vars(request)["slo"] = Slo(ttft_s=1.0, tbt_s=0.1)
        self.scheduler.add_request(request)

    def step(self) -> None:
        scheduler, watch = self.scheduler, self.watch
        watch.inside_s, began_s = 0.0, time.thread_time()
        scheduled = scheduler.schedule()
        spent_s = time.thread_time() - began_s
        CLOCK.run(scheduler)
        made = fake_tokens(scheduled, scheduler.requests)
        began_s = time.thread_time()
        scheduler.update_from_output(scheduled, made)
        spent_s += time.thread_time() - began_s
        watch.own_s.append(spent_s - watch.inside_s)

    def measure(self, steps: int) -> list[float]:
        """Own milliseconds of each step."""
        self.watch.own_s.clear()
        for _ in range(steps):
            while len(self.scheduler.waiting) < self._waiting:
                self._add(PROMPT_TOKENS, 1)
            self.step()
        return [1e3 * own_s for own_s in self.watch.own_s[WARMUP_STEPS:]]


def fake_tokens(scheduled: SchedulerOutput, requests: dict[str, Request]) -> ModelRunnerOutput:
    """Token 7 for each request whose prompt is complete after this step."""
    ids = list(scheduled.num_scheduled_tokens)
    made = [[7] if not requests[each].is_prefill_chunk else [] for each in ids]
    index = {request_id: i for i, request_id in enumerate(ids)}
    return ModelRunnerOutput(req_ids=ids, req_id_to_index=index, sampled_token_ids=made)


def figures(own_ms: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(own_ms, [50, 99])
    named = {"mean_ms": np.mean(own_ms), "p50_ms": p50, "p99_ms": p99}
    return {name: round(float(value), 4) for name, value in named.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=None)
    out: Path | None = parser.parse_args().json
    setattr(slo_scheduler, "time", CLOCK)  # noqa: B010 - not for mypy to see
    cases = {
        f"{kind.__name__.removeprefix('Timed').lower()}, {batcher}, {running} decodes, "
        f"{waiting} prompts waiting": figures(
            Load(make_scheduler(kind, batcher), running, waiting).measure(STEPS)
        )
        for kind in (TimedSync, TimedAsync)
        for batcher, running, waiting in (
            ("slo", 256, 0),
            ("slo", 256, 32),
            ("slo", 64, 8),
            ("static:2048", 256, 32),
        )
    }
    body = {
        **provenance(["python", "-m", "benchmarks.batcher_cost", *command_line()[1:]]),
        "goal_ms": GOAL_MS,
        "own_time_per_step": cases,
    }
    text = json.dumps(body, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
