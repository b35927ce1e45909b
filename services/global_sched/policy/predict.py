"""Predictions the policies share: how fast an instance prefills, when a prompt would be done."""

from __future__ import annotations

from services.global_sched.policy.views import InstanceView, Pace, PoolView, RequestView
from shared.latency_model import TYPICAL_CONTEXT_TOKENS, LatencyModel

# Steps without decodes run about this long (see BatcherSettings.free_step_ms).
FREE_STEP_MS = 160.0
MIN_TOKENS_PER_MS = 0.05


def pace_of(view: InstanceView, slo_tbt_s: float) -> Pace:
    """What is the same for every request of this TBT SLO; kept with the view."""
    pace = view.paces.get(slo_tbt_s)
    if pace is None:
        pace = view.paces[slo_tbt_s] = _work_out_pace(view, slo_tbt_s)
    return pace


def _work_out_pace(view: InstanceView, slo_tbt_s: float) -> Pace:
    base_ms, decode_ms, context_ms, prefill_ms, attend_ms = view.model
    running_ms = decode_ms * view.num_decodes + context_ms * view.decode_context_tokens
    per_token_ms = prefill_ms + attend_ms * TYPICAL_CONTEXT_TOKENS
    kept_s = slo_tbt_s / (1.0 + view.step_margin)
    tokens_per_ms = _prefill_tokens_per_ms(view, base_ms, running_ms, per_token_ms, kept_s)
    return Pace(view, tokens_per_ms, running_ms, kept_s)


def request_decode_ms(model: LatencyModel, request: RequestView) -> float:
    """Marginal step time of the request once it decodes, at half of its expected output."""
    context = request.num_prompt_tokens + 0.5 * request.length.mean
    return model.decode_ms + model.context_ms * context


def _prefill_tokens_per_ms(
    view: InstanceView, base_ms: float, running_ms: float, per_token_ms: float, kept_tbt_s: float
) -> float:
    """Prefill speed: whole steps when nothing decodes, else what decodes leave of the steps the
    batcher plans."""
    if view.static_tokens is not None:
        tokens = float(max(view.static_tokens - view.num_decodes, 1))
        return tokens / (base_ms + running_ms + per_token_ms * tokens)
    if view.num_decodes == 0:
        tokens = min(view.max_num_batched_tokens, (FREE_STEP_MS - base_ms) / per_token_ms)
        return tokens / (base_ms + per_token_ms * tokens)
    step_ms = 1e3 * kept_tbt_s
    room = step_ms - base_ms - running_ms
    return max(room / per_token_ms / step_ms, MIN_TOKENS_PER_MS)


def typical_tokens(model: LatencyModel, tokens: int, context: int) -> float:
    """Tokens at the typical context that take as long as these behind ``context`` others.

    Prefill speeds are stated for it; a prompt of 24,000 tokens takes half as long again.
    """
    _, _, _, prefill_ms, attend_ms = model
    return model.prompt_ms(tokens, context) / (prefill_ms + attend_ms * TYPICAL_CONTEXT_TOKENS)


def handoff_s(view: InstanceView, tokens: int, pool: PoolView) -> float:
    """Exposed transfer time: all but the last chunk moved while alpha was still computing."""
    chunk = view.max_num_batched_tokens
    tail = tokens if tokens < chunk else chunk
    return pool.handoff_latency_s + tail * pool.kv_bytes_per_token / view.link_bytes_per_s


def uncached_tokens(request: RequestView, instance_id: str) -> int:
    """Prompt tokens the instance must compute; the last one always is."""
    cached = request.cached_tokens.get(instance_id, 0)
    return max(request.num_prompt_tokens - cached, 1)
