"""A clairvoyant lower bound on GPU time, whatever the placement and the batching.

Every prompt token costs at least its own work plus its share of the base of the largest step;
every decode step costs its own work plus its share of the base of the fullest step that still
meets the TBT SLO (and fits the KV and the sequence limit). No step can do better, so
``instances / mean GPU seconds per request`` bounds the rate at which *all* requests are served.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dynaserve.sim.simulator import SimSettings
from dynaserve.sim.traces import SimRequest, Trace, poisson_arrivals


def gpu_seconds(request: SimRequest, settings: SimSettings) -> float:
    """The least GPU time the request can take."""
    model = settings.model
    prompt, output = request.prompt_tokens, request.output_tokens
    prefill_ms = model.prompt_ms(prompt, 0)
    prefill_ms += model.base_ms * prompt / settings.max_num_batched_tokens
    steps = output - 1
    if steps <= 0:
        return 1e-3 * prefill_ms
    context = prompt + 0.5 * steps
    per_decode_ms = model.decode_ms + model.context_ms * context
    fullest = max((1e3 * settings.slo_tbt_s - model.base_ms) / per_decode_ms, 1.0)
    fullest = min(fullest, settings.max_num_seqs, max(settings.kv_tokens / context, 1.0))
    return 1e-3 * (prefill_ms + steps * (per_decode_ms + model.base_ms / fullest))


def bound_rps(requests: Iterable[SimRequest], settings: SimSettings) -> float:
    """The rate no policy can exceed while serving every request."""
    times = [gpu_seconds(request, settings) for request in requests]
    return settings.instances * len(times) / sum(times)


def equal_work_shares(traces: Sequence[Trace], settings: SimSettings) -> list[float]:
    """Arrival rates that make every kind of traffic offer the same GPU work, relative."""
    return [1.0 / _mean_gpu_seconds(trace, settings) for trace in traces]


def _mean_gpu_seconds(trace: Trace, settings: SimSettings) -> float:
    requests = poisson_arrivals(trace, 1.0, float(len(trace.rows)))
    return sum(gpu_seconds(request, settings) for request in requests) / len(requests)
