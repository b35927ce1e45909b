"""Instance -> everybody: its load, pushed at most 20 times a second."""

from typing import Literal

from pydantic import Field

from shared.schemas.message import InstanceId, Message, Part
from shared.schemas.registry import LatencyCoefficients


class LinkLoad(Part):
    """One direction of a KV link as the sender's handoffs saw it lately."""

    peer_id: InstanceId
    transport: str
    bytes_per_s: float = Field(description="while the link was busy with them")


class InstanceLoad(Message):
    """A snapshot of one instance. Token counts, seconds, fractions of one."""

    kind: Literal["load"] = "load"
    instance_id: InstanceId
    sequence: int
    at_s: float = Field(description="unix time")
    report_every_s: float = Field(
        default=0.25, description="the next report comes within this time, also when all is quiet"
    )
    num_running: int
    num_waiting: int
    num_waiting_for_kv: int = 0
    num_decodes: int
    context_sum: int = Field(description="tokens of context over all decodes")
    outstanding_prefill_tokens: int = Field(description="prompt tokens that could be computed now")
    late_prefill_tokens: int = Field(
        default=0, description="part of these: of prompts that miss their deadline, and so yield"
    )
    inbound_prefill_tokens: int = Field(
        default=0, description="prompt tokens to compute here once their KV has come"
    )
    num_pending_decodes: int = Field(
        default=0, description="requests that do not decode yet, will, and can still be in time"
    )
    pending_decode_context_tokens: int = Field(default=0, description="their prompts")
    free_blocks: int
    num_blocks: int
    max_num_batched_tokens: int
    batcher_mode: str = "static"
    step_margin: float = Field(
        default=0.0,
        description="steps beside decodes are planned for the TBT objective / (1 + this): the "
        "batcher's distance from steps that take longer than predicted",
    )
    budget_tokens: int = 0
    step_s: float = 0.0
    predicted_step_s: float = 0.0
    slo_headroom: float = Field(default=1.0, description="1 - step/SLO, negative when missed")
    num_steps: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    admitted_request_ids: list[str] = Field(
        default_factory=list,
        description="segments first seen since the last report: now counted here",
    )
    links: list[LinkLoad] = Field(default_factory=list)
    latency: LatencyCoefficients | None = Field(
        default=None, description="the latency model as corrected by the steps so far"
    )
