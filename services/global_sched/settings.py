"""Settings of one global scheduler: flags, then ``DYNASERVE_SCHEDULER_*``, then defaults."""

import uuid
from collections.abc import Sequence

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.global_sched.policy import POLICIES
from shared.schemas.message import InstanceId
from shared.schemas.place import AdmissionMode
from shared.settings import ActorSettings


class SchedulerSettings(ActorSettings):
    """One replica of the scheduler."""

    model_config = SettingsConfigDict(
        env_prefix="DYNASERVE_SCHEDULER_",
        cli_prog_name="dynaserve scheduler",
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
