"""The baselines: round robin, colocated (least loaded), disaggregated (static roles)."""

from __future__ import annotations

from services.global_sched.policy.predict import (
    handoff_s,
    pace_of,
    request_decode_ms,
    uncached_tokens,
)
from services.global_sched.policy.views import (
    Decision,
    InstanceView,
    Listed,
    NoInstance,
    PoolView,
    Prediction,
    RequestView,
    Weighed,
    cost_of,
    prediction_of,
)


def predict_unsplit(view: InstanceView, request: RequestView) -> Prediction:
    """The whole request on one instance. The cost counts its prompt's wait and decode load."""
    tokens = view.outstanding_prefill_tokens + uncached_tokens(request, view.instance_id)
    pace = pace_of(view, request.slo_tbt_s)
    ttft_s = 1e-3 * tokens / pace.tokens_per_ms
    tbt_s = 1e-3 * (view.model.base_ms + pace.decode_ms + request_decode_ms(view.model, request))
    pressure = max(0.0, tbt_s / request.slo_tbt_s - 1.0)
    needed = tokens + view.pending_decodes * 16 + request.length.mean
    kv_short = max(0.0, needed - view.kv_free_tokens) / view.kv_capacity_tokens
    return Prediction(ttft_s, tbt_s, ttft_s + tbt_s + pressure + 10.0 * kv_short)


class RoundRobin:
    """Whole requests, instance after instance. The only policy with memory: whose turn it is."""

    def __init__(self) -> None:
        self._turn = 0

    def place(self, request: RequestView, pool: PoolView) -> Decision:
        if not pool.instances:
            raise NoInstance
        view = pool.instances[self._turn % len(pool.instances)]
        self._turn += 1
        candidate = _whole(view, request)
        return _unsplit(candidate, (candidate,), "its turn")


class Colocated:
    """Whole requests on the least loaded instance.

    Least loaded: the smallest predicted time to first token given the prompts queued and the
    speed decodes leave to prefill, plus the step time its decodes would reach; an instance over
    its TBT SLO or short of KV costs more.
    """

    def place(self, request: RequestView, pool: PoolView) -> Decision:
        candidates = tuple([_whole(view, request) for view in pool.instances])
        if not candidates:
            raise NoInstance
        best = min(candidates, key=cost_of)
        return _unsplit(best, candidates, "least loaded")


class Disaggregated:
    """Static roles: the prompt on the least loaded prefill instance, every token after the first
    on the decode instance with the least decode load (cut at P). One-token requests stay whole.
    """

    def place(self, request: RequestView, pool: PoolView) -> Decision:
        alphas = [view for view in pool.instances if view.role != "decode"]
        betas = [view for view in pool.instances if view.role != "prefill"]
        if not alphas or not betas:
            raise NoInstance
        alpha = min(alphas, key=lambda view: _prefill_s(view, request))
        beta = min(betas, key=lambda view: decode_load(view, request))
        whole = _whole(alpha, request)
        if request.max_tokens < 2 or alpha is beta:
            return _unsplit(whole, (whole,), "nothing to hand over")
        predicted = predict_disaggregated(alpha, beta, request, pool)
        pair, cut = (alpha.instance_id, beta.instance_id), request.num_prompt_tokens
        return Decision(
            "cut",
            *pair,
            cut,
            predicted,
            prediction_of(whole),
            Listed((whole, (*pair, cut, *predicted)), predicted),
            "static roles",
        )


def predict_disaggregated(
    alpha: InstanceView, beta: InstanceView, request: RequestView, pool: PoolView
) -> Prediction:
    """Cut at P: alpha's queue decides TTFT; the longest gap is the handoff plus beta's step."""
    ttft_s = _prefill_s(alpha, request)
    decode_ms = pace_of(beta, request.slo_tbt_s).decode_ms
    step_s = 1e-3 * (beta.model.base_ms + decode_ms + request_decode_ms(beta.model, request))
    tbt_s = step_s + handoff_s(alpha, request.num_prompt_tokens, pool)
    return Prediction(ttft_s, tbt_s, ttft_s + tbt_s + max(0.0, tbt_s / request.slo_tbt_s - 1.0))


def decode_load(view: InstanceView, request: RequestView) -> float:
    """Decode step time, with a surcharge when the context would not fit the free KV."""
    context = request.num_prompt_tokens + request.length.mean
    short = max(0.0, context + view.pending_decode_context_tokens - view.kv_free_tokens)
    decode_ms = pace_of(view, request.slo_tbt_s).decode_ms
    return decode_ms + 1e3 * short / view.kv_capacity_tokens


def _prefill_s(view: InstanceView, request: RequestView) -> float:
    tokens = view.outstanding_prefill_tokens + uncached_tokens(request, view.instance_id)
    return 1e-3 * tokens / pace_of(view, request.slo_tbt_s).tokens_per_ms


def _whole(view: InstanceView, request: RequestView) -> Weighed:
    return (view.instance_id, None, None, *predict_unsplit(view, request))


def _unsplit(best: Weighed, candidates: tuple[Weighed, ...], reason: str) -> Decision:
    prediction = prediction_of(best)
    return Decision(
        "unsplit", best[0], None, None, prediction, prediction, Listed(candidates), reason
    )
