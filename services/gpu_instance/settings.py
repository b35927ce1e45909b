"""Settings of one GPU instance: flags, then ``DYNASERVE_INSTANCE_*``, then defaults."""

import socket
import uuid
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg, CliUnknownArgs, SettingsConfigDict

from services.gpu_instance.engine.seam import EngineName
from shared.schemas.handoff import Transport
from shared.schemas.message import InstanceId
from shared.schemas.registry import InstanceRole
from shared.settings import ActorSettings


def host_identity() -> str:
    """Equal for processes that share memory: the kernel's boot id and the name of the host."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    boot_id = boot.read_text().strip()[:8] if boot.exists() else "unknown"
    return f"{socket.gethostname()}-{boot_id}"


def _offered_transports() -> tuple[Transport, ...]:
    """What this machine has, best first."""
    return ("nccl", "shm", "tcp") if _has_nccl() else ("shm", "tcp")


def _staging_mib() -> int:
    """A GPU's staging should hold the KV of a whole prefill step (1.5 GiB for 8k tokens at 14B),
    as far as that leaves the memory to others: one and a half per cent of it for each direction."""
    if not _has_nccl():
        return 256
    import torch

    total_mib = torch.cuda.mem_get_info(0)[1] // 2**20
    return int(min(2048, max(256, total_mib // 64)))


def _has_nccl() -> bool:
    import torch  # seconds to import, and not needed where the flags are given

    return bool(torch.cuda.is_available() and torch.distributed.is_nccl_available())


class InstanceSettings(ActorSettings):
    """One instance. Flags that are not of this class go to the engine, in ``engine_args``."""

    model_config = SettingsConfigDict(
        env_prefix="DYNASERVE_INSTANCE_",
        cli_prog_name="dynaserve instance",
        cli_ignore_unknown_args=True,
    )

    id: InstanceId = Field(
        default_factory=lambda: f"i-{uuid.uuid4().hex[:8]}", description="name of this instance"
    )
    model: CliPositionalArg[str] = Field(default="", description="folder or hub name of the model")
    engine: EngineName = Field(default="vllm", description="vllm, or simulated for scale tests")
    role: InstanceRole = Field(
        default="any", description="static role, used by the policy 'disaggregated' alone"
    )
    host_id: str = Field(
        default_factory=host_identity, description="equal for instances that share memory"
    )
    kv_host: str = Field(
        default="127.0.0.1", description="address under which other instances reach the KV port"
    )
    transports: tuple[Transport, ...] = Field(
        default_factory=_offered_transports,
        description="ways to move KV that this instance offers; unset: all that the machine has",
    )
    kv_staging_mib: int = Field(
        default_factory=_staging_mib,
        gt=0,
        description="bound of the memory for KV on its way, MiB, in host memory and, with nccl, "
        "on the GPU for each direction; unset: 256, with nccl up to 2048 on a large GPU",
    )
    batcher: str = Field(
        default="slo",
        pattern=r"^(slo|static:[1-9][0-9]*)$",
        description="slo, or static:N for vLLM's own behaviour with N batched tokens",
    )
    slo_tbt_ms: float = Field(
        default=100.0,
        gt=0,
        description="P99 gap between tokens that the engine is set up for: below 40, vLLM captures "
        "steps with prompts as whole CUDA graphs where it can (Hopper), unless "
        "--compilation-config says otherwise; requests bring their own objective",
    )
    latency_profile: Path | None = Field(
        default=None, description="JSON of `dynaserve profile`; unset: the shipped one"
    )
    engine_args: CliUnknownArgs = Field(
        default=[], description="every other flag goes to the engine as it is"
    )
    max_segments: int = Field(
        default=1024, gt=0, description="segments alive at once; more are refused"
    )
    drain_s: float = Field(
        default=30.0, gt=0, description="how long running segments may go on after SIGTERM"
    )
    telemetry_interval_s: float = Field(
        default=0.05, ge=0.05, description="load reports are this far apart at least"
    )


def read_settings(arguments: Sequence[str]) -> InstanceSettings:
    """Settings from flags, environment and defaults; exits with usage on a wrong flag."""
    return InstanceSettings(_cli_parse_args=list(arguments))
