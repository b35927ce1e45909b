"""Settings of one coordinator: flags, then ``DYNASERVE_KV_TRANSFER_*``, then defaults."""

import uuid
from collections.abc import Sequence

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.schemas.message import InstanceId
from shared.settings import ActorSettings


class KvTransferSettings(ActorSettings):
    """One replica of the KV-transfer service."""

    model_config = SettingsConfigDict(
        env_prefix="DYNASERVE_KV_TRANSFER_",
        cli_prog_name="dynaserve kv-transfer",
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


def read_settings(arguments: Sequence[str]) -> KvTransferSettings:
    """Settings from flags, environment and defaults; exits with usage on a wrong flag."""
    return KvTransferSettings(_cli_parse_args=list(arguments))
