"""What every service can be told: the same flags, variables and defaults in each."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.tracing import endpoint_from_environment


class BusSettings(BaseSettings):
    """Of whatever takes part in a pool."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", cli_kebab_case=True)

    nats: str = Field(default="nats://127.0.0.1:4222", description="URL of the NATS server")
    pool: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9_-]+$",
        description="pools on one server do not see each other",
    )
    otlp_endpoint: str | None = Field(
        default_factory=endpoint_from_environment,
        description="send traces there by OTLP/HTTP; unset: OTEL_EXPORTER_OTLP_ENDPOINT, or off",
    )
    log_level: str = Field(default="INFO", description="level of the log")


class ActorSettings(BusSettings):
    """Of a service that has no HTTP port of its own: its metrics get one."""

    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="serve /metrics here; 0 picks a port; unset: off"
    )
    metrics_host: str = Field(
        default="127.0.0.1", description="address on which /metrics is served"
    )
