"""Flags of an instance: vLLM's engine's, and those that a pool hands to everybody."""

import pytest

from services.gpu_instance.engine import launch
from services.gpu_instance.engine.launch import _engine_args, _wants_whole_graphs
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


@pytest.mark.parametrize(
    ("hopper", "slo_tbt_ms", "flags", "wanted"),
    [
        (True, 25.0, (), True),
        (True, 50.0, (), False),
        (False, 25.0, (), False),
        (True, 25.0, ("--enforce-eager",), False),
        (True, 25.0, ('--compilation-config={"cudagraph_mode": "PIECEWISE"}',), False),
    ],
)
def test_steps_with_prompts_are_captured_whole_for_tight_slos_on_hopper(
    monkeypatch: pytest.MonkeyPatch,
    hopper: bool,
    slo_tbt_ms: float,
    flags: tuple[str, ...],
    wanted: bool,
) -> None:
    monkeypatch.setattr(launch, "_is_hopper", lambda: hopper)
    assert _wants_whole_graphs(_engine_args(settings(*flags)), slo_tbt_ms) is wanted
