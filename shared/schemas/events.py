"""One record per finished request, for `dynaserve explain` and the metrics of the pool."""

from typing import Literal

from pydantic import Field

from shared.schemas.message import Message
from shared.schemas.place import Plan
from shared.schemas.request import Slo
from shared.schemas.tokens import SegmentTiming


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
