"""What a gateway can be told: flags, then DYNASERVE_GATEWAY_* variables, then these defaults.

Every flag that is not one of these belongs to ``vllm serve`` and keeps vLLM's name and meaning.
"""

import secrets
from typing import Literal

from pydantic import Field
from pydantic_settings import CliUnknownArgs, SettingsConfigDict

from shared.schemas.message import InstanceId
from shared.settings import BusSettings


def _random_id() -> str:
    return f"gateway-{secrets.token_hex(3)}"


class GatewaySettings(BusSettings):
    """One gateway's settings, read once at start."""

    model_config = SettingsConfigDict(
        env_prefix="DYNASERVE_GATEWAY_",
        cli_prog_name="dynaserve gateway MODEL",
        cli_ignore_unknown_args=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    vllm_args: CliUnknownArgs = Field(
        default=[], description="MODEL and every other flag, as `vllm serve` takes them"
    )
    id: InstanceId = Field(default_factory=_random_id, description="name of this gateway")
    trace_sample_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the requests without a traceparent that are traced",
    )
    slo_ttft_ms: float = Field(
        default=10_000.0, gt=0, description="time to first token a request wants unless it says"
    )
    slo_tbt_ms: float = Field(
        default=100.0, gt=0, description="P99 gap between tokens a request wants unless it says"
    )
    max_in_flight: int = Field(default=4096, gt=0, description="requests beyond get a 429")
    request_timeout_s: float = Field(default=600.0, gt=0, description="deadline of every request")
    place_timeout_s: float = Field(
        default=2.0, gt=0, description="wait for a scheduler's answer before asking again"
    )
    place_patience_s: float = Field(
        default=3.0, ge=0, description="keep trying to place this long before a 503"
    )
    recovery_patience_s: float = Field(
        default=10.0, ge=0, description="the same for a request whose client already has tokens"
    )
    max_attempts: int = Field(default=3, ge=1, description="placements of one request")
    gap_timeout_s: float = Field(
        default=2.0, gt=0, description="tokens missing this long are taken as lost"
    )
    records_max_age_s: float = Field(
        default=6 * 3600.0, gt=0, description="records of requests are kept on the bus this long"
    )
    records_max_mib: int = Field(
        default=64, gt=0, description="and at most so much of them, for the whole pool, MiB"
    )
    records_storage: Literal["memory", "file"] = Field(
        default="memory", description="where the NATS server keeps them"
    )
    drain_timeout_s: float = Field(
        default=30.0, ge=0, description="after SIGTERM, wait for running requests"
    )
