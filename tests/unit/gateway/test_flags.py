"""Flags of ours and of vLLM on one command line."""

import pytest

from services.gateway.front.application import parse_vllm_args
from services.gateway.settings import GatewaySettings


def test_flags_of_ours_are_taken_and_the_rest_is_left_to_vllm() -> None:
    settings = GatewaySettings(
        _cli_parse_args=[
            *("MODEL", "--nats", "nats://h:1", "--port", "8001"),
            *("--slo-ttft-ms", "250", "--max_model_len", "64", "--enable-auto-tool-choice"),
        ]
    )
    assert (settings.nats, settings.slo_ttft_ms) == ("nats://h:1", 250.0)
    left = ["MODEL", "--port", "8001", "--max_model_len", "64", "--enable-auto-tool-choice"]
    assert settings.vllm_args == left


def test_each_gateway_has_a_name_of_its_own() -> None:
    assert GatewaySettings().id != GatewaySettings().id


def test_the_environment_counts_less_than_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNASERVE_GATEWAY_POOL", "blue")
    monkeypatch.setenv("DYNASERVE_GATEWAY_ID", "one")
    settings = GatewaySettings(_cli_parse_args=["MODEL", "--id", "two"])
    assert (settings.pool, settings.id) == ("blue", "two")


def test_vllms_flags_mean_what_they_mean_there() -> None:
    args = parse_vllm_args(["MODEL", "--port", "8001", "--served-model-name", "a", "b"])
    assert (args.model, args.port, args.served_model_name) == ("MODEL", 8001, ["a", "b"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--enable-lora"],
        ["--enable-prompt-embeds"],
        ["--headless"],
        ["--data-parallel-size", "2"],
        ["--api-server-count", "2"],
        ["--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'],
    ],
)
def test_a_flag_that_would_do_nothing_is_an_error(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_vllm_args(["MODEL", *flags])
    assert f"{flags[0]} has no effect" in capsys.readouterr().err
