"""Settings of one global scheduler: flags, then ``DYNASERVE_SCHEDULER_*``, then defaults."""

import uuid
from collections.abc import Sequence

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.global_sched.policy import POLICIES
from shared.schemas.message import InstanceId
from shared.schemas.place import AdmissionMode
from shared.tracing import endpoint_from_environment


class SchedulerSettings(BaseSettings):
    """One replica of the scheduler."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="DYNASERVE_SCHEDULER_",
        extra="forbid",
        cli_prog_name="dynaserve scheduler",
        cli_kebab_case=True,
    )

    nats: str = Field(default="nats://127.0.0.1:4222", description="URL of the NATS server")
    pool: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9_-]+$",
        description="pools on one server do not see each other",
    )
    id: InstanceId = Field(
        default_factory=lambda: f"s-{uuid.uuid4().hex[:8]}", description="name of this replica"
    )
    policy: str = Field(default="dynaserve", description=f"one of {', '.join(sorted(POLICIES))}")
    admission: AdmissionMode = Field(
        default="refuse",
        description="requests whose time to first token cannot be met: refuse (429) or queue them",
    )
    queue_classes: str = Field(
        default="", description="SLO classes that queue whatever --admission says, e.g. batch,low"
    )
    max_queued: int = Field(
        default=1024,
        gt=0,
        description="requests without a first token per ready instance; more are refused",
    )
    max_pending: int = Field(
        default=2048, gt=0, description="placements waiting at once; more are refused"
    )
    max_remembered: int = Field(
        default=16_384, gt=0, description="recent plans kept, so that a repeated question is free"
    )
    handoff_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="a handoff must be complete this long after the placement, plus twice the "
        "TBT objective for each token alpha decodes",
    )
    max_candidates: int = Field(
        default=8, ge=0, description="candidates told in a plan, the cheapest first"
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

    @field_validator("policy")
    @classmethod
    def _is_known(cls, policy: str) -> str:
        if policy not in POLICIES:
            raise ValueError(f"{policy!r} is none of {', '.join(sorted(POLICIES))}")
        return policy

    @property
    def queueing(self) -> dict[str, AdmissionMode]:
        """Mode by class, as ``queue_classes`` says."""
        names = (name.strip() for name in self.queue_classes.split(","))
        return {name: "queue" for name in names if name}


def read_settings(arguments: Sequence[str]) -> SchedulerSettings:
    """Settings from flags, environment and defaults; exits with usage on a wrong flag."""
    return SchedulerSettings(_cli_parse_args=list(arguments))
