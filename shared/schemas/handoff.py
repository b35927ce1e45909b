"""Conversation scheduler/instances <-> KV-transfer coordinator: a handoff, open to released."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from shared.schemas.message import InstanceId, Message

Transport = Literal["shm", "tcp", "nccl"]
Side = Literal["alpha", "beta"]


class HandoffOpen(Message):
    """Scheduler -> coordinator: KV of positions [0, cut) goes from alpha to beta."""

    kind: Literal["handoff_open"] = "handoff_open"
    handoff_id: str
    request_id: str
    epoch: int
    alpha_id: InstanceId
    beta_id: InstanceId
    cut: int = Field(ge=1)
    deadline_s: float = Field(description="unix time by which beta must be complete")
    transport: Transport | None = Field(default=None, description="None: the best both sides have")
    traceparent: str | None = None


class HandoffStart(Message):
    """Coordinator -> both instances: the link to use and how long the blocks may be held."""

    kind: Literal["handoff_start"] = "handoff_start"
    handoff_id: str
    request_id: str
    epoch: int
    side: Side
    peer_id: InstanceId
    peer_addresses: list[str] = Field(description="KV port of each tensor-parallel rank")
    transport: Transport
    deadline_s: float
    lease_s: float = Field(
        gt=0, description="blocks are freed this long after the deadline at most"
    )


class HandoffAbort(Message):
    """Coordinator -> instance: the handoff failed; free what is held for it."""

    kind: Literal["handoff_abort"] = "handoff_abort"
    handoff_id: str
    epoch: int
    reason: str


HandoffPhase = Literal[
    "accepted",  # alpha or beta knows the segment
    "held",  # beta: blocks are allocated
    "first_chunk",  # alpha: first chunk left
    "sent_all",  # alpha: last chunk left
    "complete",  # beta: [0, cut) is there
    "adopted",  # beta: the request runs on it
    "not_needed",  # beta: its prefix cache had everything
    "recomputed",  # beta: gave up waiting and computes itself
    "released",  # alpha: holds no block for it any more
    "ended",  # alpha: the request ended before the cut
    "cancelled",
    "failed",
]


class HandoffEvent(Message):
    """Instance -> coordinator: what happened to its side."""

    kind: Literal["handoff_event"] = "handoff_event"
    handoff_id: str
    epoch: int
    side: Side
    instance_id: InstanceId
    phase: HandoffPhase
    at_s: float = Field(description="unix time on the instance")
    num_bytes: int = 0
    transfer_s: float = Field(default=0.0, description="time the link was busy with it")
    exposed_s: float = Field(default=0.0, description="beta: wait between alpha's end and complete")
    detail: str = ""


class HandoffRecord(Message):
    """Published when a handoff is over: how it ended, what moved and how long it took."""

    kind: Literal["handoff_record"] = "handoff_record"
    handoff_id: str
    request_id: str
    epoch: int
    alpha_id: InstanceId
    beta_id: InstanceId
    outcome: Literal["adopted", "not_needed", "recomputed", "ended", "cancelled", "failed"]
    transport: Transport
    num_bytes: int
    transfer_s: float
    exposed_s: float
    total_s: float
    kv_blocks_orphaned: int = 0
    detail: str = ""
    opened_at_s: float | None = Field(default=None, description="unix time at the coordinator")
    streaming_at_s: float | None = Field(default=None, description="first chunk left alpha")
    ready_at_s: float | None = Field(default=None, description="beta had [0, cut)")
    released_at_s: float | None = None


CoordinatorMessage = Annotated[HandoffOpen | HandoffEvent, Field(discriminator="kind")]
COORDINATOR: TypeAdapter[CoordinatorMessage] = TypeAdapter(CoordinatorMessage)
HandoffCommand = Annotated[HandoffStart | HandoffAbort, Field(discriminator="kind")]
HANDOFF_COMMAND: TypeAdapter[HandoffCommand] = TypeAdapter(HandoffCommand)
