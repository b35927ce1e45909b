"""Between the bus's words and vLLM's: segments become requests, outputs emissions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import JsonValue
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.outputs import LogprobsLists, LogprobsTensors
from vllm.v1.request import Request

from services.gpu_instance.engine.seam import Emission
from shared.errors import InvalidRequest
from shared.schemas.message import unpack_tokens
from shared.schemas.segment import Segment
from shared.schemas.tokens import FinishReason as FinishWord
from shared.schemas.tokens import TokenLogprobs
from shared.vllm_params import pooling_from_json, sampling_from_json

DEFAULT_LEASE_S = 5.0
"""How long alpha's blocks may wait for a handoff that nobody coordinates."""

FINISH_WORDS: dict[FinishReason, FinishWord] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORT: "abort",
    FinishReason.ERROR: "error",
    FinishReason.REPETITION: "repetition",
}


@dataclass(slots=True)
class LiveSegment:
    """A segment the engine has; where its next token goes and what was said of it already."""

    segment: Segment
    engine_request_id: str
    next_position: int
    hidden: bool
    """Alpha cut inside the prompt: its one sampled token is nobody's."""
    first: bool = True
    num_preemptions: int = 0


def engine_request_id(request_id: str, epoch: int, role: str) -> str:
    """Unique in an engine even when two epochs of a request overlap in it."""
    return f"{request_id}/{epoch}/{role}"


def live_segment(segment: Segment) -> LiveSegment:
    """The bookkeeping of a segment that is about to be added."""
    request = segment.request
    num_prompt = len(request.prompt_token_ids) // 4
    num_output = len(request.output_token_ids) // 4
    cut = segment.handoff.cut if segment.handoff is not None else None
    next_position = num_prompt + num_output
    if segment.role == "beta" and cut is not None and cut >= num_prompt:
        next_position = cut + 1
    return LiveSegment(
        segment=segment,
        engine_request_id=engine_request_id(request.request_id, segment.epoch, segment.role),
        next_position=next_position,
        hidden=segment.role == "alpha" and cut is not None and cut < num_prompt,
    )


def build_request(
    live: LiveSegment, preprocess: Callable[[EngineCoreRequest], tuple[Request, int]]
) -> Request:
    """The vLLM request of a segment; raises InvalidRequest for what vLLM would not take."""
    segment, source = live.segment, live.segment.request
    prompt = unpack_tokens(source.prompt_token_ids)
    cut = segment.handoff.cut if segment.handoff is not None else None
    sampling = sampling_from_json(source.sampling_params) if source.sampling_params else None
    if live.hidden:
        prompt, sampling = prompt[:cut], _prefill_only()
    if sampling is not None and segment.handoff is not None:
        sampling.extra_args = {
            **(sampling.extra_args or {}),
            "kv_transfer_params": _handoff_params(segment),
        }
    pooling = pooling_from_json(source.pooling_params) if source.pooling_params else None
    if sampling is None and pooling is None:
        raise InvalidRequest("neither sampling nor pooling parameters", "sampling_params")
    request, _wave = preprocess(
        EngineCoreRequest(
            request_id=live.engine_request_id,
            prompt_token_ids=prompt,
            mm_features=None,
            sampling_params=sampling,
            pooling_params=pooling,
            arrival_time=source.arrival_time_s,
            lora_request=None,
            cache_salt=source.cache_salt,
            data_parallel_rank=None,
            priority=source.priority,
            trace_headers=source.trace_headers,
            reasoning_ended=source.reasoning_ended,
            reasoning_parser_kwargs=source.reasoning_parser_kwargs,
        )
    )
    _shape_segment(request, live, len(prompt), cut)
    return request


def _shape_segment(request: Request, live: LiveSegment, num_prompt: int, cut: int | None) -> None:
    """Make the request what its role says: where it ends, and what it starts behind."""
    role = live.segment.role
    if role == "alpha" and cut is not None and not live.hidden:
        request.max_tokens = cut - num_prompt + 1
    if role == "beta" and cut is not None and cut >= num_prompt:
        # Placeholders until the first segment's tokens come. They are not hashed, so that no
        # cached block is taken for them (``update_block_hashes`` runs when they are replaced).
        placeholders = [0] * (cut - num_prompt + 1)
        request._output_token_ids.extend(placeholders)
        request._all_token_ids.extend(placeholders)
        request.prefill_stats = None
    resumed = unpack_tokens(live.segment.request.output_token_ids)
    if resumed:
        request.append_output_token_ids(resumed)
        request.prefill_stats = None


def _prefill_only() -> SamplingParams:
    """A run for its KV alone: one greedy token that nobody sees."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _handoff_params(segment: Segment) -> dict[str, JsonValue]:
    handoff = segment.handoff
    assert handoff is not None
    return {
        "side": segment.role,
        "handoff_id": handoff.handoff_id,
        "request_id": segment.request.request_id,
        "epoch": segment.epoch,
        "cut": handoff.cut,
        "deadline_s": handoff.deadline_s,
        "lease_s": DEFAULT_LEASE_S,
        "peer_addresses": [*handoff.peer_addresses],
        "transport": handoff.transport,
    }


def to_emission(live: LiveSegment, output: EngineCoreOutput) -> Emission | None:
    """What the bus hears of an output; None when there is nothing to say."""
    segment = live.segment
    finish = FINISH_WORDS[output.finish_reason] if output.finish_reason is not None else None
    reached_cut = segment.role == "alpha" and finish == "length"
    position = live.next_position
    token_ids = [] if live.hidden else output.new_token_ids
    live.next_position += len(token_ids)
    queued_s = _note_events(live, output)
    if not token_ids and finish is None and output.pooling_output is None:
        return None
    emission = Emission(
        request_id=segment.request.request_id,
        epoch=segment.epoch,
        role=segment.role,
        position=position,
        token_ids=token_ids,
        logprobs=_logprobs(output.new_logprobs) if not live.hidden else None,
        prompt_logprobs=_prompt_logprobs(output.new_prompt_logprobs_tensors),
        pooling_output=_pooling(output.pooling_output),
        finish_reason=None if reached_cut else finish,
        stop_reason=output.stop_reason,
        num_cached_tokens=_num_cached(live, output),
        queued_s=queued_s,
        num_preemptions=live.num_preemptions,
        reached_cut=reached_cut,
        failure=("engine_failed", "the engine gave the request up") if finish == "error" else None,
    )
    live.first = False
    return emission


def _num_cached(live: LiveSegment, output: EngineCoreOutput) -> int | None:
    if not live.first:
        return None
    return output.prefill_stats.num_local_cached_tokens if output.prefill_stats else None


def _note_events(live: LiveSegment, output: EngineCoreOutput) -> float | None:
    """Count preemptions; the wait before the first step, once."""
    times: dict[EngineCoreEventType, float] = {}
    for event in output.events or ():
        if event.type == EngineCoreEventType.PREEMPTED:
            live.num_preemptions += 1
        times.setdefault(event.type, event.timestamp)
    queued, started = (
        times.get(EngineCoreEventType.QUEUED),
        times.get(EngineCoreEventType.SCHEDULED),
    )
    if not live.first or queued is None or started is None:
        return None
    return started - queued


def _logprobs(lists: LogprobsLists | None) -> TokenLogprobs | None:
    if lists is None:
        return None
    return TokenLogprobs(
        token_ids=lists.logprob_token_ids.tolist(),
        logprobs=lists.logprobs.tolist(),
        ranks=lists.sampled_token_ranks.tolist(),
    )


def _prompt_logprobs(tensors: LogprobsTensors | None) -> TokenLogprobs | None:
    if tensors is None:
        return None
    return TokenLogprobs(
        token_ids=tensors.logprob_token_ids.tolist(),
        logprobs=tensors.logprobs.tolist(),
        ranks=tensors.selected_token_ranks.tolist(),
    )


def _pooling(output: torch.Tensor | None) -> list[float] | list[list[float]] | None:
    if output is None:
        return None
    values: list[float] | list[list[float]] = output.float().tolist()
    return values
