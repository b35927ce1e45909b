"""Flags of an instance: vLLM's engine's, and those that a pool hands to everybody."""

import pytest

from services.gpu_instance.engine.launch import _engine_args
from services.gpu_instance.settings import InstanceSettings
from shared.errors import InvalidRequest


def settings(*flags: str) -> InstanceSettings:
    return InstanceSettings(model="a/model", engine_args=list(flags))


def test_flags_of_the_engine_mean_what_they_mean_to_vllm() -> None:
    args = _engine_args(settings("--max-model-len", "512", "--dtype=float32"))
    assert (args.model, args.max_model_len, args.dtype) == ("a/model", 512, "float32")


def test_flags_of_the_http_server_are_left_to_the_gateway() -> None:
    flags = ("--tool-call-parser", "hermes", "--enable-auto-tool-choice", "--max-model-len=512")
    assert _engine_args(settings(*flags)).max_model_len == 512


def test_a_flag_that_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="--no-such-flag"):
        _engine_args(settings("--max-model-len=512", "--no-such-flag"))
