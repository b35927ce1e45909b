"""vLLM's requests as the bus has them, and the bus's tokens as vLLM has them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.lora.request import LoRARequest
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import EngineCoreEventType, EngineCoreRequest, FinishReason

from services.gateway.front.translate import SEED_BITS, Translator, to_output
from services.gateway.http_context import HttpContext
from services.gateway.in_flight import Delivered, FirstToken
from services.gateway.settings import GatewaySettings
from shared.errors import InvalidRequest
from shared.schemas.message import unpack_tokens
from shared.schemas.request import Slo
from shared.schemas.tokens import TokenDelta, TokenLogprobs
from shared.vllm_params import sampling_from_json

CONTEXT = HttpContext("http", Slo(ttft_s=1, tbt_s=0.1), {"traceparent": "00-1-2-01"})
SETTINGS = GatewaySettings(request_timeout_s=60.0)


def translator(processors: list[str] | None = None, reasoning: str = "") -> Translator:
    config = SimpleNamespace(
        model_config=SimpleNamespace(logits_processors=processors),
        structured_outputs_config=SimpleNamespace(reasoning_parser=reasoning),
    )
    return Translator(config, SETTINGS)


def request(params: SamplingParams | PoolingParams | None = None, **fields: Any) -> Any:
    params = params or SamplingParams(max_tokens=5)
    is_pooling = isinstance(params, PoolingParams)
    return EngineCoreRequest(
        **{
            "request_id": "cmpl-1",
            "prompt_token_ids": [1, 2, 3],
            "mm_features": None,
            "sampling_params": None if is_pooling else params,
            "pooling_params": params if is_pooling else None,
            "arrival_time": 100.0,
            "lora_request": None,
            "cache_salt": None,
            "data_parallel_rank": None,
            **fields,
        }
    )


def test_a_request_carries_what_an_instance_needs() -> None:
    ask = translator().to_ask(request(priority=2, cache_salt="s", reasoning_ended=True), CONTEXT)
    sent = ask.request
    assert (sent.request_id, unpack_tokens(sent.prompt_token_ids)) == ("cmpl-1", [1, 2, 3])
    assert (sent.max_tokens, sent.priority, sent.cache_salt) == (5, 2, "s")
    assert (sent.arrival_time_s, sent.deadline_s) == (100.0, 160.0)
    assert (sent.slo, sent.trace_headers) == (CONTEXT.slo, CONTEXT.trace_headers)
    assert sent.splittable
    assert sent.reasoning_ended
    assert (ask.forced_cut, ask.http_request_id) == (None, "http")


def test_sampling_without_a_seed_gets_one_and_each_request_its_own() -> None:
    params = SamplingParams(temperature=1.0)
    seeds = {
        (translator().to_ask(request(params), CONTEXT).request.sampling_params or {})["seed"]
        for _ in range(20)
    }
    assert len(seeds) > 15
    assert all(isinstance(seed, int) and 0 <= seed < 2**SEED_BITS for seed in seeds)
    assert params.seed is None


@pytest.mark.parametrize(
    ("params", "seed"),
    [(SamplingParams(temperature=1.0, seed=7), 7), (SamplingParams(temperature=0.0), None)],
)
def test_a_seed_given_and_greedy_stay_as_they_are(params: SamplingParams, seed: int | None) -> None:
    sent = translator().to_ask(request(params), CONTEXT).request.sampling_params
    assert sent is not None
    assert sampling_from_json(sent).seed == seed


@pytest.mark.parametrize(
    ("made_by", "params"),
    [
        (translator(), SamplingParams(prompt_logprobs=1)),
        (translator(), SamplingParams(watermarking=True)),
        (translator(), SamplingParams(thinking_token_budget=5)),
        (translator(), SamplingParams(extra_args={"dynaserve_cut": "never"})),
        (translator(["a.Processor"]), SamplingParams()),
        (
            translator(reasoning="deepseek_r1"),
            SamplingParams(structured_outputs=StructuredOutputsParams(regex="a")),
        ),
        (translator(), PoolingParams(task="embed")),
    ],
)
def test_what_two_engines_cannot_make_exactly_is_not_split(
    made_by: Translator, params: Any
) -> None:
    assert not made_by.to_ask(request(params), CONTEXT).request.splittable


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(logprobs=5, stop=["x"], min_tokens=2, presence_penalty=1.0),
        SamplingParams(structured_outputs=StructuredOutputsParams(regex="a")),
    ],
)
def test_what_goes_on_exactly_may_be_split(params: SamplingParams) -> None:
    assert translator().to_ask(request(params), CONTEXT).request.splittable


def test_arguments_of_ours_do_not_reach_the_engine() -> None:
    params = SamplingParams(
        extra_args={"dynaserve_cut": 2, "dynaserve_transport": "tcp", "theirs": 1}
    )
    ask = translator().to_ask(request(params), CONTEXT)
    assert (ask.forced_cut, ask.forced_transport) == (2, "tcp")
    assert (ask.request.sampling_params or {})["extra_args"] == {"theirs": 1}
    assert params.extra_args is not None and "dynaserve_cut" in params.extra_args


@pytest.mark.parametrize(
    ("extra_args", "param"),
    [
        ({"dynaserve_cut": 0}, "vllm_xargs.dynaserve_cut"),
        ({"dynaserve_cut": True}, "vllm_xargs.dynaserve_cut"),
        ({"dynaserve_cut": "2"}, "vllm_xargs.dynaserve_cut"),
        ({"dynaserve_cut": 1.5}, "vllm_xargs.dynaserve_cut"),
        ({"dynaserve_transport": "pigeon"}, "vllm_xargs.dynaserve_transport"),
        ({"dynaserve_cutt": 2}, "vllm_xargs.dynaserve_cutt"),
        ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
    ],
)
def test_a_malformed_argument_is_named(extra_args: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        translator().to_ask(request(SamplingParams(extra_args=extra_args)), CONTEXT)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"mm_features": ["picture"]}, "messages"),
        ({"prompt_embeds": torch.zeros(1, 2)}, "prompt_embeds"),
        ({"lora_request": LoRARequest("l", 1, "/l")}, "model"),
        ({"resumable": True}, "prompt"),
        ({"prompt_token_ids": []}, "prompt"),
    ],
)
def test_what_cannot_run_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        translator().to_ask(request(**fields), CONTEXT)
    assert caught.value.param == param


def delta(**fields: Any) -> TokenDelta:
    return TokenDelta.model_validate(
        {"request_id": "r", "epoch": 1, "position": 3, "token_ids": [5, 6], **fields}
    )


LOGPROBS = TokenLogprobs(
    token_ids=[[5, 9], [6, 8]], logprobs=[[-0.1, -2.0], [-0.2, -3.0]], ranks=[1, 2]
)


def test_tokens_become_an_output() -> None:
    output = to_output(Delivered(delta(logprobs=LOGPROBS)))
    assert (output.request_id, output.new_token_ids, output.finish_reason) == ("r", [5, 6], None)
    assert output.new_logprobs.logprob_token_ids.tolist() == LOGPROBS.token_ids
    assert np.allclose(output.new_logprobs.logprobs, LOGPROBS.logprobs)
    assert output.new_logprobs.sampled_token_ranks.tolist() == [1, 2]
    assert output.events is None


@pytest.mark.parametrize("reason", ["stop", "length", "abort", "error", "repetition"])
def test_every_finish_reason_has_its_counterpart(reason: str) -> None:
    output = to_output(Delivered(delta(finish_reason=reason, stop_reason=17)))
    assert str(output.finish_reason) == reason
    assert isinstance(output.finish_reason, FinishReason)
    assert output.stop_reason == 17


def test_the_first_token_brings_queue_times_cached_tokens_and_prompt_logprobs() -> None:
    first = FirstToken(
        num_prompt_tokens=3, num_cached_tokens=2, submitted_s=10.0, placed_s=11.0, queued_s=0.5
    )
    output = to_output(Delivered(delta(prompt_logprobs=LOGPROBS), first))
    assert [(e.type, e.timestamp) for e in output.events] == [
        (EngineCoreEventType.QUEUED, 10.0),
        (EngineCoreEventType.SCHEDULED, 11.5),
    ]
    assert output.prefill_stats.num_cached_tokens == 2
    assert output.new_prompt_logprobs_tensors.logprobs.shape == (2, 2)


def test_prompt_logprobs_are_told_once() -> None:
    assert to_output(Delivered(delta(prompt_logprobs=LOGPROBS))).new_prompt_logprobs_tensors is None


def test_a_vector_becomes_a_tensor() -> None:
    output = to_output(Delivered(delta(token_ids=[], pooling_output=[0.5, 1.0])))
    assert output.pooling_output.tolist() == [0.5, 1.0]
