"""Settings of ``dynaserve up``: flags, then ``DYNASERVE_UP_*``, then defaults."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, CliUnknownArgs, SettingsConfigDict

from shared.schemas.place import AdmissionMode

DEMO_ENGINE_ARGS = (
    "--dtype=float32",
    "--max-model-len=2048",
    "--block-size=32",
    "--served-model-name=demo",
)
DEMO_GATEWAY_ARGS = ("--enable-auto-tool-choice", "--tool-call-parser=hermes")
"""How the demo model's chat template writes the calls of tools."""


class PoolSettings(BaseSettings):
    """A pool on this machine. Flags that are not of this class go to gateway and engines."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="DYNASERVE_UP_",
        extra="forbid",
        cli_prog_name="dynaserve up [MODEL]",
        cli_kebab_case=True,
        cli_ignore_unknown_args=True,
    )

    model: str = Field(
        default="",
        description="folder or hub name of the model, also as the first argument; none: the "
        "built-in demo model",
    )
    instances: int | None = Field(
        default=None, ge=1, description="GPU instances; default: one a GPU, or 2 without a GPU"
    )
    engine: Literal["vllm", "simulated"] = Field(
        default="vllm",
        description="simulated: instances compute nothing but take as long, for tests of the rest; "
        "other flags are then those of a simulated engine",
    )
    policy: str = Field(default="dynaserve", description="how requests are placed and cut")
    batcher: str = Field(
        default="slo", description="slo, or static:N for vLLM's own behaviour with N tokens"
    )
    host: str = Field(default="127.0.0.1", description="address the gateway listens on")
    port: int = Field(default=8000, ge=0, le=65535, description="port of the gateway")
    nats: str | None = Field(default=None, description="NATS server to use; none: an embedded one")
    pool: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9_-]+$",
        description="pools on one NATS server do not see each other",
    )
    gateways: int = Field(
        default=1, ge=1, description="front doors, on --port and the ports behind it"
    )
    schedulers: int = Field(default=1, ge=1, description="replicas of the global scheduler")
    coordinators: int = Field(default=1, ge=1, description="replicas of the KV-transfer service")
    slo_tbt_ms: float = Field(default=100.0, gt=0, description="P99 gap between tokens")
    slo_ttft_ms: float = Field(default=10_000.0, gt=0, description="time to first token")
    admission: AdmissionMode = Field(
        default="refuse",
        description="requests whose time to first token cannot be met: refuse (429) or queue them",
    )
    queue_classes: str = Field(
        default="", description="SLO classes that queue whatever --admission says, e.g. batch,low"
    )
    max_queued: int | None = Field(
        default=None,
        gt=0,
        description="requests without a first token per instance; more are refused",
    )
    roles: str = Field(
        default="",
        description="static roles of the instances for the policy 'disaggregated', e.g. "
        "prefill,decode; the rest is 'any'",
    )
    transports: str = Field(default="", description="ways to move KV, e.g. shm,tcp; none: all")
    latency_profile: Path | None = Field(
        default=None, description="JSON of `dynaserve profile`; none: the shipped one"
    )
    ready_timeout_s: float = Field(
        default=600.0, gt=0, description="give up when no request can be placed by then"
    )
    log_folder: Path = Field(
        default=Path("~/.cache/dynaserve/logs").expanduser(),
        description="the output of every part goes into a file here",
    )
    otlp_endpoint: str | None = Field(
        default=None, description="send traces there by OTLP/HTTP, e.g. http://127.0.0.1:4318"
    )
    trace_sample_ratio: float = Field(
        default=1.0, ge=0, le=1, description="share of the requests that are traced"
    )
    engine_args: CliUnknownArgs = Field(
        default=[], description="every other flag, as `vllm serve` takes them"
    )


def read_settings(arguments: Sequence[str]) -> PoolSettings:
    """Settings from flags, environment and defaults; exits with usage on a wrong flag."""
    rest = list(arguments)
    # MODEL comes first or not at all: behind a flag of vLLM's nobody could tell it from a value.
    if rest and not rest[0].startswith("-"):
        rest[0] = f"--model={rest[0]}"
    return PoolSettings(_cli_parse_args=rest)
