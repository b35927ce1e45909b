"""Conversation instance -> gateway: what a step produced, one frame per step and gateway."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from shared.schemas.message import InstanceId, Message, Part

FinishReason = Literal["stop", "length", "abort", "error", "repetition"]


class TokenLogprobs(Part):
    """Log-probabilities of the tokens of one delta: one row per token, the sampled token first."""

    token_ids: list[list[int]]
    logprobs: list[list[float]]
    ranks: list[int]


class TokenDelta(Part):
    """New tokens of one request. ``position`` is the index of the first in prompt + output.

    A delta with ``finish_reason`` is the request's last. Alpha's last delta before a handoff has
    none: beta goes on at the next position.
    """

    request_id: str
    epoch: int
    position: int
    token_ids: list[int]
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: TokenLogprobs | None = None
    pooling_output: list[float] | list[list[float]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int | None = Field(
        default=None, description="prompt tokens not computed here; on a segment's first delta"
    )
    queued_s: float | None = Field(
        default=None, description="waited in the engine before its first step; on the first delta"
    )
    num_preemptions: int = 0


class TokenFrame(Message):
    """All deltas of one engine step that go to one gateway."""

    kind: Literal["tokens"] = "tokens"
    instance_id: InstanceId
    sent_s: float | None = Field(default=None, description="unix time at the end of the step")
    deltas: list[TokenDelta]


FailureCode = Literal["refused", "handoff_lost", "engine_failed", "draining", "deadline", "invalid"]


class SegmentFailed(Message):
    """A segment ended without its result; the gateway decides whether to place the rest again."""

    kind: Literal["segment_failed"] = "segment_failed"
    instance_id: InstanceId
    request_id: str
    epoch: int
    code: FailureCode
    message: str
    param: str | None = Field(default=None, description="the request parameter at fault, if one is")


class SegmentTiming(Message):
    """When a segment ran, for the request's record. Unix seconds; sent when the segment ends."""

    kind: Literal["segment_timing"] = "segment_timing"
    instance_id: InstanceId
    request_id: str
    epoch: int
    role: Literal["whole", "alpha", "beta"]
    received_s: float
    started_s: float | None = None
    ended_s: float
    kv_wait_s: float = Field(default=0.0, description="beta: waited for KV after alpha's end")
    kv_bytes: int = 0


GatewayMessage = Annotated[TokenFrame | SegmentFailed | SegmentTiming, Field(discriminator="kind")]
GATEWAY: TypeAdapter[GatewayMessage] = TypeAdapter(GatewayMessage)
