"""vLLM's EngineCoreRequest -> the bus's request; the bus's tokens -> vLLM's EngineCoreOutput."""

import random
from typing import Any, get_args

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from services.gateway.http_context import HttpContext
from services.gateway.in_flight import Ask, Delivered, FirstToken
from services.gateway.settings import GatewaySettings
from shared.errors import InvalidRequest
from shared.schemas.handoff import Transport
from shared.schemas.message import pack_tokens
from shared.schemas.request import GenerationRequest
from shared.schemas.tokens import TokenLogprobs
from shared.vllm_params import pooling_to_json, sampling_to_json

SEED_BITS = 31
CUT_ARG = "dynaserve_cut"
NEVER_CUT = "never"
TRANSPORT_ARG = "dynaserve_transport"
OWN_ARGS = frozenset({CUT_ARG, TRANSPORT_ARG})

FINISH_REASONS = {str(reason): reason for reason in FinishReason}

UNSPLITTABLE_FIELDS = (
    "prompt_logprobs",
    "prompt_logprob_token_ids",
    "thinking_token_budget",
    "trace_decode_token_ids",
)
"""Sampling fields whose effect depends on having run the whole request in one engine."""


class Translator:
    """Turns vLLM's requests into placement questions, for one model configuration."""

    def __init__(self, vllm_config: VllmConfig, settings: GatewaySettings) -> None:
        self._settings = settings
        self._custom_processors = bool(vllm_config.model_config.logits_processors)
        self._reasons = bool(vllm_config.structured_outputs_config.reasoning_parser)

    def to_ask(self, request: EngineCoreRequest, context: HttpContext) -> Ask:
        """Raises InvalidRequest naming the parameter of what no instance could run."""
        refuse_what_cannot_run(request)
        params = request.sampling_params
        own = own_args(params)
        return Ask(
            GenerationRequest(
                request_id=request.request_id,
                prompt_token_ids=pack_tokens(request.prompt_token_ids),
                sampling_params=None if params is None else sampling_fields(params),
                pooling_params=None if params is not None else pooling_to_json(request.params),
                max_tokens=0 if params is None else params.max_tokens,
                priority=request.priority,
                cache_salt=request.cache_salt,
                arrival_time_s=request.arrival_time,
                deadline_s=request.arrival_time + self._settings.request_timeout_s,
                slo=context.slo,
                splittable=params is not None
                and own.get(CUT_ARG) != NEVER_CUT
                and self._is_splittable(params),
                trace_headers=context.trace_headers,
                reasoning_ended=request.reasoning_ended,
                reasoning_parser_kwargs=request.reasoning_parser_kwargs,
            ),
            forced_cut=forced_cut(own),
            forced_transport=forced_transport(own),
            http_request_id=context.request_id,
            operation=context.operation,
            received_s=context.received_s,
        )

    def _is_splittable(self, params: SamplingParams) -> bool:
        """Whether two engines can make exactly what one would."""
        if self._custom_processors or params.watermarking:
            return False
        if self._reasons and params.structured_outputs is not None:
            return False
        return all(getattr(params, name) is None for name in UNSPLITTABLE_FIELDS)


def refuse_what_cannot_run(request: EngineCoreRequest) -> None:
    """Raises InvalidRequest for input that does not travel or would have no effect."""
    unsupported = {
        "multimodal input": (request.mm_features, "messages"),
        "prompt_embeds": (request.prompt_embeds is not None, "prompt_embeds"),
        "LoRA": (request.lora_request, "model"),
        "input streaming": (request.resumable, "prompt"),
        "an empty prompt": (not request.prompt_token_ids, "prompt"),
    }
    for what, (is_used, param) in unsupported.items():
        if is_used:
            raise InvalidRequest(f"{what} is not supported by this pool", param)
    extra_args = (request.sampling_params and request.sampling_params.extra_args) or {}
    if "kv_transfer_params" in extra_args:
        raise InvalidRequest("the pool itself hands KV over", "kv_transfer_params")
    unknown = {key for key in extra_args if key.startswith("dynaserve_")} - OWN_ARGS
    if unknown:
        name = min(unknown)
        raise InvalidRequest(f"unknown argument {name}", f"vllm_xargs.{name}")


def own_args(params: SamplingParams | None) -> dict[str, Any]:
    """The arguments in ``vllm_xargs`` that are for the pool and not for an engine."""
    extra_args = (params and params.extra_args) or {}
    return {key: value for key, value in extra_args.items() if key in OWN_ARGS}


def forced_cut(own: dict[str, Any]) -> int | None:
    """The cut a request insists on; its upper bound is the scheduler's to check."""
    cut = own.get(CUT_ARG)
    if cut is None or cut == NEVER_CUT:
        return None
    if not isinstance(cut, int) or isinstance(cut, bool) or cut < 1:
        raise InvalidRequest(
            f"must be a whole number from 1 on, or {NEVER_CUT!r}, not {cut!r}",
            f"vllm_xargs.{CUT_ARG}",
        )
    return cut


def forced_transport(own: dict[str, Any]) -> Transport | None:
    """The way its KV must go if the request is cut; whether both sides have it shows there."""
    name: Transport | None = own.get(TRANSPORT_ARG)
    if name is not None and name not in get_args(Transport):
        raise InvalidRequest(
            f"must be one of {', '.join(get_args(Transport))}, not {name!r}",
            f"vllm_xargs.{TRANSPORT_ARG}",
        )
    return name


def sampling_fields(params: SamplingParams) -> dict[str, Any]:
    """``params`` for the bus. Sampling without a seed gets one: a cut must not change the draw."""
    fields = sampling_to_json(params)
    if params.seed is None and params.temperature > 0:
        fields["seed"] = random.getrandbits(SEED_BITS)
    if own_args(params):
        extra_args = {k: v for k, v in params.extra_args.items() if k not in OWN_ARGS}
        fields["extra_args"] = extra_args or None
    return fields


def to_output(delivered: Delivered) -> EngineCoreOutput:
    """One delta as vLLM's output processor takes it."""
    delta, first = delivered.delta, delivered.first
    output = EngineCoreOutput(request_id=delta.request_id, new_token_ids=delta.token_ids)
    if delta.finish_reason is not None:
        output.finish_reason = FINISH_REASONS[delta.finish_reason]
        output.stop_reason = delta.stop_reason
    if delta.logprobs is not None:
        output.new_logprobs = LogprobsLists(*_arrays(delta.logprobs))
    if first is not None:
        _add_first(output, first)
        if delta.prompt_logprobs is not None:
            tensors = (torch.from_numpy(a) for a in _arrays(delta.prompt_logprobs))
            output.new_prompt_logprobs_tensors = LogprobsTensors(*tensors)
    if delta.pooling_output is not None:
        output.pooling_output = torch.tensor(delta.pooling_output)
    return output


def _arrays(logprobs: TokenLogprobs) -> tuple[Any, Any, Any]:
    return (
        np.asarray(logprobs.token_ids, dtype=np.int64),
        np.asarray(logprobs.logprobs, dtype=np.float32),
        np.asarray(logprobs.ranks, dtype=np.int64),
    )


def _add_first(output: EngineCoreOutput, first: FirstToken) -> None:
    """What vLLM's own metrics want to know once per request: queue times and cached tokens."""
    scheduled_s = first.placed_s + first.queued_s
    output.events = [
        EngineCoreEvent.new_event(EngineCoreEventType.QUEUED, first.submitted_s),
        EngineCoreEvent.new_event(EngineCoreEventType.SCHEDULED, scheduled_s),
    ]
    output.prefill_stats = PrefillStats()
    output.prefill_stats.set(first.num_prompt_tokens, first.num_cached_tokens, 0)
