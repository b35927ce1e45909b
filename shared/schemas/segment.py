"""Conversation scheduler/gateway -> instance: micro-requests and what is said of them later."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from shared.schemas.handoff import Transport
from shared.schemas.message import InstanceId, Message, PackedTokens, Part
from shared.schemas.request import GenerationRequest

Role = Literal["whole", "alpha", "beta"]


class HandoffRef(Part):
    """The handoff a segment takes part in, with its link: data may flow before the coordinator,
    which watches over it, has said a word."""

    handoff_id: str
    cut: int = Field(ge=1, description="alpha runs positions [0, cut), beta the rest")
    peer_id: InstanceId
    coordinator_id: InstanceId
    deadline_s: float = Field(description="unix time by which beta must hold [0, cut)")
    peer_addresses: list[str] = Field(
        default_factory=list, description="KV port of each of the peer's tensor-parallel ranks"
    )
    transport: Transport | None = Field(
        default=None, description="None: the coordinator says which, in HandoffStart"
    )


class Segment(Message):
    """One micro-request: run ``request`` whole, up to the cut (alpha) or from it on (beta)."""

    kind: Literal["segment"] = "segment"
    role: Role
    epoch: int = Field(ge=1)
    gateway_id: InstanceId
    request: GenerationRequest
    handoff: HandoffRef | None = Field(default=None, description="None exactly for role 'whole'")
    sent_s: float | None = Field(default=None, description="unix time at the scheduler")


class SegmentCancel(Message):
    """Stop every segment of the request up to and including ``epoch`` and free what it holds."""

    kind: Literal["segment_cancel"] = "segment_cancel"
    request_id: str
    epoch: int = Field(ge=1)
    reason: str = "client"


class Continuation(Message):
    """Alpha -> beta when alpha reached the cut: the tokens it emitted, positions P .. cut.

    ``ended`` tells that the request ended before the cut (EOS, stop, cancel): beta is dropped.
    """

    kind: Literal["continuation"] = "continuation"
    handoff_id: str
    request_id: str
    epoch: int
    token_ids: PackedTokens = b""
    ended: bool = False


class SetBatcher(Message):
    """Switch the local batcher: 'slo', or 'static:N' for vLLM's own behaviour with N tokens."""

    kind: Literal["set_batcher"] = "set_batcher"
    mode: str = Field(pattern=r"^(slo|static:[1-9][0-9]*)$")
    slo_tbt_s: float | None = Field(default=None, gt=0)


class ResetPrefixCache(Message):
    """Forget cached prefixes (used between benchmark and certification runs)."""

    kind: Literal["reset_prefix_cache"] = "reset_prefix_cache"


class ReadPrefixes(Message):
    """Tell all schedulers the whole of what the prefix cache holds: one of them missed a part."""

    kind: Literal["read_prefixes"] = "read_prefixes"


class Drain(Message):
    """Take no new segments, finish the running ones, leave the pool."""

    kind: Literal["drain"] = "drain"


class ControlReply(Message):
    """Answer to a control message that was sent as a request."""

    kind: Literal["control_reply"] = "control_reply"
    ok: bool
    detail: str = ""


class ReadSteps(Message):
    """Ask an instance for the engine steps it timed lately (`dynaserve profile`)."""

    kind: Literal["read_steps"] = "read_steps"


class TimedStep(Part):
    """What one step computed and how long it took; counts as in ``latency_model.StepShape``."""

    num_decodes: int
    decode_context_tokens: int
    prefill_tokens: int
    prefill_context_tokens2: float
    step_s: float
    seen_s: float | None = Field(
        default=None, description="how long its decodes waited for it, where that is told apart"
    )
    predicted_s: float | None = Field(default=None, description="what the latency model had said")
    limit_s: float | None = Field(
        default=None, description="what the batcher sized the step for; None without decodes"
    )


class TimedSteps(Message):
    """The last steps of an instance, oldest first; reading them empties its memory of them."""

    kind: Literal["timed_steps"] = "timed_steps"
    instance_id: InstanceId
    steps: list[TimedStep]


class InspectEngine(Message):
    """Ask an instance for its accounts: free blocks, requests alive, handoffs open."""

    kind: Literal["inspect_engine"] = "inspect_engine"


class EngineAccounts(Message):
    """What an instance holds right now; equal before and after a load when nothing leaks."""

    kind: Literal["engine_accounts"] = "engine_accounts"
    instance_id: InstanceId
    num_blocks: int
    free_blocks: int
    num_requests: int
    open_handoffs: int
    kv_blocks_orphaned: int
    staging_bytes_in_use: int
    tasks: int = Field(description="asyncio tasks of the instance's actor")
    batcher_mode: str


SegmentMessage = Segment
ControlMessage = Annotated[
    SegmentCancel
    | Continuation
    | SetBatcher
    | ResetPrefixCache
    | Drain
    | InspectEngine
    | ReadPrefixes
    | ReadSteps,
    Field(discriminator="kind"),
]
CONTROL: TypeAdapter[ControlMessage] = TypeAdapter(ControlMessage)
