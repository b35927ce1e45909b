"""From what was measured to the twin's settings, and from two sets of figures to errors. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from dynaserve.bench.observation import Observation
from dynaserve.bench.run import BenchResult
from dynaserve.sim.report import report
from dynaserve.sim.simulator import SimSettings, Simulator
from dynaserve.sim.traces import SimRequest
from services.global_sched.policy import POLICIES
from shared.latency_model import LatencyModel, LatencyProfile, StepShape

COMPARED = ("ttft_p50_ms", "ttft_p99_ms", "tbt_p50_ms", "tbt_p99_ms", "attainment", "goodput_rps")
LINK_BYTES_PER_S = 1e9
"""Assumed; a cut's exposed transfer is small beside the steps of a CPU."""
NORMAL_MEDIAN = 0.6745
"""The median of the absolute value of a normal variable, in standard deviations."""


class Overheads(NamedTuple):
    """Milliseconds on an idle pool that the latency profile does not hold."""

    first_token_ms: float
    """Client, gateway, scheduler and bus, there and back."""
    step_ms: float
    """The engine's loop between two steps, and the way of a frame."""


def overheads(seen: Sequence[Observation], model: LatencyModel) -> Overheads:
    """From single requests: what is left of their times without the steps, as the median."""
    first, step = [], []
    for each in seen:
        prompt, output = each.request.prompt_tokens, each.request.output_tokens
        prefill = StepShape(0, 0, prompt, 0.5 * prompt * prompt)
        decode_ms = model.decode_step_ms(1, prompt + output // 2)
        step.append(1e3 * each.tpot_s - decode_ms)
        first.append(1e3 * each.ttft_s - model.step_ms(prefill))
    step_ms = max(0.0, median(step))
    return Overheads(max(0.0, median(first) - step_ms), step_ms)


def twin_settings(
    result: BenchResult,
    record: Mapping[str, Any],
    profile: LatencyProfile,
    found: Overheads,
    batcher: str,
) -> SimSettings:
    """The pool as its registry shows it, as fast as it was measured to be."""
    geometry, slo, settings = record["geometry"], result.slos.default, result.settings
    block_size = geometry["block_size"]
    return SimSettings(
        profile.model,
        instances=2,
        batcher=batcher,
        slo_tbt_s=slo.tbt_s,
        slo_ttft_s=slo.ttft_s,
        slo_ttft_s_per_token=slo.ttft_s_per_token,
        kv_tokens=record["num_blocks"] * block_size,
        kv_bytes_per_token=geometry["num_layers"] * geometry["block_bytes"] // block_size,
        link_bytes_per_s=LINK_BYTES_PER_S,
        bus_latency_s=1e-3 * found.first_token_ms,
        step_overhead_s=1e-3 * found.step_ms,
        max_num_batched_tokens=record["max_num_batched_tokens"],
        max_num_seqs=record["max_num_seqs"],
        max_tokens=record["max_model_len"],
        step_noise=profile.error.p50 / NORMAL_MEDIAN,
        warmup_s=settings.warmup_s,
        measure_until_s=settings.until_s,
    )


def simulated(
    twin: SimSettings, policy: str, requests: Sequence[SimRequest], duration_s: float
) -> dict[str, Any]:
    """The twin's figures on these requests."""
    outcome = Simulator(twin, POLICIES[policy]()).run(requests)
    return dict(report(outcome, twin, duration_s))


def errors(real: Mapping[str, Any], twin: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Shares in points, everything else relative to the real figure."""
    found = {"real": {}, "twin": {}, "error": {}}  # type: dict[str, dict[str, float]]
    for name in COMPARED:
        was, said = float(real[name]), float(twin[name])
        found["real"][name], found["twin"][name] = round(was, 3), round(said, 3)
        difference = said - was if name == "attainment" else (said - was) / max(was, 1e-9)
        found["error"][name] = round(difference, 3)
    return found
