"""What a simulated engine is like: its size, its speed, its link."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.latency_model import DEFAULT_PROFILE


class SimulationSettings(BaseSettings):
    """The shape of one simulated GPU. Defaults resemble a 14B model on one H200."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="DYNASERVE_SIMULATION_",
        extra="forbid",
        cli_prog_name="dynaserve instance --engine simulated",
        cli_kebab_case=True,
    )

    model: str = Field(default="simulated", description="name under which the model is served")
    profile: Path = Field(default=DEFAULT_PROFILE, description="latency profile of a step")
    num_blocks: int = Field(default=32_768, gt=0, description="KV blocks")
    block_size: int = Field(default=16, gt=0, description="tokens per KV block")
    max_model_len: int = Field(default=32_768, gt=1, description="tokens")
    max_num_seqs: int = Field(default=256, gt=0, description="requests in one step")
    max_num_batched_tokens: int = Field(default=8192, gt=0, description="tokens in one step")
    batcher: str = Field(
        default="slo", pattern=r"^(slo|static:[1-9][0-9]*)$", description="slo or static:N"
    )
    vocab_size: int = Field(default=32_000, gt=1, description="tokens are below this")
    kv_token_bytes: int = Field(default=196_608, gt=0, description="KV of one token, all layers")
    link_bytes_per_s: float = Field(default=20e9, gt=0, description="speed of a KV link")
    slowdown: float = Field(
        default=1.0,
        gt=0,
        description="steps take so many times what the profile says, and nobody is told: a GPU "
        "that throttles",
    )
    speedup: float = Field(
        default=1.0, gt=0, description="simulated seconds per real second, for steps and links"
    )

    @classmethod
    def from_args(
        cls,
        model: str,
        arguments: Sequence[str],
        batcher: str | None = None,
        profile: Path | None = None,
    ) -> SimulationSettings:
        """From the flags of ``dynaserve instance --engine simulated`` that are not the actor's,
        and from those of the actor's that any engine follows."""
        settings = cls(_cli_parse_args=list(arguments))
        of_the_actor = {"model": model or None, "batcher": batcher, "profile": profile}
        return settings.model_copy(
            update={name: value for name, value in of_the_actor.items() if value is not None}
        )
