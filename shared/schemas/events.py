"""One record per finished request, for `dynaserve explain` and the metrics of the pool."""

from typing import Literal

from pydantic import Field, TypeAdapter

from shared.schemas.message import InstanceId, Message, Part
from shared.schemas.place import Plan
from shared.schemas.request import Slo
from shared.schemas.tokens import SegmentTiming


class Recovery(Part):
    """A placement that was given up: why, and where the client's tokens stood."""

    epoch: int = Field(description="of the placement that failed")
    at_s: float = Field(description="unix time at the gateway")
    code: str = Field(description="a FailureCode, 'instance_lost' or 'tokens_lost'")
    message: str
    instance_id: InstanceId | None = None
    position: int = Field(description="the next position wanted, in prompt + output")
    replaced_s: float | None = Field(
        default=None, description="until the next placement stood; None: there was none"
    )


class Emitter(Part):
    """The tokens of a request that came from one instance without a break, in order.

    Gaps are those at the gateway. The one before its first token, after another instance's last,
    is ``handover_gap_s`` and not among the others.
    """

    instance_id: InstanceId
    from_position: int
    num_tokens: int
    handover_gap_s: float | None = None
    longest_gap_s: float = 0.0
    longest_gap_position: int | None = None
    num_late_gaps: int = Field(default=0, description="gaps above the TBT objective")
    late_s: float = Field(default=0.0, description="by how much, summed")


class StepsSeen(Part):
    """Engine steps of an instance while it ran for a request, as its telemetry sampled them."""

    instance_id: InstanceId
    phase: Literal["prefill", "decode"] = Field(description="before or after the first token")
    num_samples: int
    median_step_s: float
    longest_step_s: float
    most_decodes: int
    most_waiting: int


class RequestRecord(Message):
    """What was planned for a request and what happened. Seconds; unix times end in ``_at_s``."""

    kind: Literal["request"] = "request"
    request_id: str
    gateway_id: str
    http_request_id: str = Field(default="", description="X-Request-Id of the HTTP request")
    arrival_at_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    slo: Slo
    outcome: Literal["stop", "length", "abort", "error", "repetition", "refused"]
    error: str | None = None
    place_s: float = Field(default=0.0, description="wait for the placement, all epochs")
    ttft_s: float | None = None
    tbt_p99_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float
    slo_met: bool
    epochs: int = Field(description="placements used; above 1 after a recovery")
    plan: Plan | None = None
    segments: list[SegmentTiming] = Field(default_factory=list)
    recoveries: list[Recovery] = Field(default_factory=list)
    emitters: list[Emitter] = Field(default_factory=list)
    steps: list[StepsSeen] = Field(
        default_factory=list, description="of a request that missed an objective"
    )


REQUEST_RECORD: TypeAdapter[RequestRecord] = TypeAdapter(RequestRecord)
