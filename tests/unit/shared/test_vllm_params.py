"""Parameters come back from the bus as they were sent, private fields included."""

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

from shared.vllm_params import (
    pooling_from_json,
    pooling_to_json,
    sampling_from_json,
    sampling_to_json,
)


def processed(params: SamplingParams) -> SamplingParams:
    """As the input processor leaves it: private fields set."""
    params.update_from_generation_config({"eos_token_id": [7, 8]}, eos_token_id=7)
    params._bad_words_token_ids = [[1, 2], [3]]
    return params


def constrained(backend: str, **constraint: Any) -> StructuredOutputsParams:
    made = StructuredOutputsParams(**constraint)
    made._backend = backend
    made._backend_was_auto = True
    return made


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.0, max_tokens=None),
        SamplingParams(
            temperature=0.7,
            top_p=0.9,
            top_k=5,
            min_p=0.1,
            seed=3,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            repetition_penalty=1.2,
            stop=["ab", "c"],
            stop_token_ids=[4, 5],
            min_tokens=2,
            logprobs=3,
            prompt_logprobs=1,
            bad_words=["x"],
            logit_bias={3: 1.5, 10: -2.0},
            allowed_token_ids=[1, 2, 3],
            extra_args={"a": [1, {"b": None}]},
            output_kind=RequestOutputKind.DELTA,
            repetition_detection=RepetitionDetectionParams(3, 1, 2),
        ),
        SamplingParams(structured_outputs=constrained("xgrammar", json={"type": "object"})),
        SamplingParams(structured_outputs=constrained("guidance", regex="[ab]+")),
        SamplingParams(structured_outputs=constrained("xgrammar", choice=["a", "b"])),
        SamplingParams(logprob_token_ids=[1, 2], flat_logprobs=True, skip_clone=True),
    ],
)
def test_sampling_params_survive_the_bus(params: SamplingParams) -> None:
    sent = processed(params)
    received = sampling_from_json(json.loads(json.dumps(sampling_to_json(sent))))
    for field in msgspec.structs.fields(SamplingParams):
        assert getattr(received, field.name) == getattr(sent, field.name), field.name
    assert received == sent


def test_arrays_survive_the_bus() -> None:
    sent = SamplingParams(prompt_logprob_token_ids=np.array([[1, 2], [3, -1]]))
    received = sampling_from_json(json.loads(json.dumps(sampling_to_json(sent))))
    assert np.array_equal(received.prompt_logprob_token_ids, sent.prompt_logprob_token_ids)


def test_what_cannot_be_sent_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="object"):
        sampling_to_json(SamplingParams(extra_args={"a": object()}))


def test_defaults_are_not_sent() -> None:
    assert set(sampling_to_json(SamplingParams(temperature=0.5))) <= {
        "temperature",
        "stop",
        "stop_token_ids",
        "bad_words",
        "skip_reading_prefix_cache",
    }


@pytest.mark.parametrize(
    "params",
    [
        PoolingParams(),
        PoolingParams(task="embed", dimensions=8, use_activation=True),
        PoolingParams(task="token_embed", extra_kwargs={"a": 1}),
    ],
)
def test_pooling_params_survive_the_bus(params: PoolingParams) -> None:
    received = pooling_from_json(json.loads(json.dumps(pooling_to_json(params))))
    for field in msgspec.structs.fields(PoolingParams):
        assert getattr(received, field.name) == getattr(params, field.name), field.name
