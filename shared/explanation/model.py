"""What an explanation consists of. Seconds; spans count from the request's arrival."""

from typing import Literal

from pydantic import Field

from shared.schemas.message import InstanceId, Part
from shared.schemas.place import Candidate

SpanKind = Literal[
    "place",  # the gateway waits for a plan
    "bus",  # the segment is on its way to its instance
    "queue",  # an instance has the segment and has not begun it
    "prefill",  # the prompt is computed, up to the first token
    "decode",
    "held",  # beta is ready and alpha is still at work: costs no time
    "transfer_hidden",  # KV moves while alpha computes
    "transfer_exposed",  # KV moves and nobody computes
    "lost",  # work of a placement that failed
]
Lane = Literal["gateway", "whole", "alpha", "transfer", "beta"]
CauseKind = Literal[
    "refused",
    "failed",
    "client",
    "place",
    "recovery",
    "bus",
    "queue",
    "prefill",
    "steps",
    "stall",
    "transfer",
]


class Span(Part):
    """One bar of the waterfall."""

    kind: SpanKind
    lane: Lane
    instance_id: InstanceId | None = None
    epoch: int = 1
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def is_hidden(self) -> bool:
        """Whether the time would have passed without it as well."""
        return self.kind in ("held", "transfer_hidden")


class Cause(Part):
    """Something that cost time, and how much; ``sentence`` is for people."""

    kind: CauseKind
    objective: Literal["ttft", "tbt", "outcome"]
    seconds: float
    sentence: str
    instance_id: InstanceId | None = None


class Regret(Part):
    """What another candidate would have given; see ``shared.explanation.regret``."""

    best: Candidate
    best_is_chosen: bool
    ttft_s: float | None = Field(description="real TTFT less the best candidate's")
    tbt_s: float | None = Field(description="real P99 gap less the best candidate's")
    estimated_ttft_s: float
    estimated_tbt_s: float
    would_have_met: bool
    how: str


class Explanation(Part):
    """One request: its verdict in a sentence, the causes behind it, its time, its alternatives."""

    request_id: str
    verdict: str
    causes: list[Cause] = Field(description="the weightiest first; empty when nothing was missed")
    spans: list[Span]
    accounted_ttft: float | None = Field(
        default=None, description="share of TTFT that the spans cover"
    )
    choice: str | None = Field(
        default=None, description="why it was cut there, or was not: what was expected of each"
    )
    regret: Regret | None = None
