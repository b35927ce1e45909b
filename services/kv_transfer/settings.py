"""Settings of one coordinator: flags, then ``DYNASERVE_KV_TRANSFER_*``, then defaults."""

import uuid
from collections.abc import Sequence

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.schemas.message import InstanceId
from shared.tracing import endpoint_from_environment


class KvTransferSettings(BaseSettings):
    """One replica of the KV-transfer service."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="DYNASERVE_KV_TRANSFER_",
        extra="forbid",
        cli_prog_name="dynaserve kv-transfer",
        cli_kebab_case=True,
    )

    nats: str = Field(default="nats://127.0.0.1:4222", description="URL of the NATS server")
    pool: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9_-]+$",
        description="pools on one server do not see each other",
    )
    id: InstanceId = Field(
        default_factory=lambda: f"k-{uuid.uuid4().hex[:8]}", description="name of this replica"
    )
    max_open: int = Field(
        default=16_384, gt=0, description="handoffs open at once; more are refused"
    )
    lease_s: float = Field(
        default=5.0, gt=0, description="a side frees by itself this long after the deadline"
    )
    registry_patience_s: float = Field(
        default=2.0, gt=0, description="wait for an instance the registry does not show yet"
    )
    drain_s: float = Field(
        default=10.0, gt=0, description="how long open handoffs may go on after SIGTERM"
    )
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="serve /metrics here; 0 picks a port; unset: off"
    )
    metrics_host: str = Field(
        default="127.0.0.1", description="address on which /metrics is served"
    )
    otlp_endpoint: str | None = Field(
        default_factory=endpoint_from_environment,
        description="send traces there by OTLP/HTTP; unset: OTEL_EXPORTER_OTLP_ENDPOINT, or off",
    )
    log_level: str = Field(default="INFO", description="level of the log")


def read_settings(arguments: Sequence[str]) -> KvTransferSettings:
    """Settings from flags, environment and defaults; exits with usage on a wrong flag."""
    return KvTransferSettings(_cli_parse_args=list(arguments))
