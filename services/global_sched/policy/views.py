"""What a split policy sees and says: frozen views of a request and of the pool, and a decision.

Times are seconds unless the name says milliseconds; sizes are tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from shared.latency_model import LatencyModel

Role = Literal["any", "prefill", "decode"]
CutKind = Literal["unsplit", "cut"]


class LengthQuantiles(NamedTuple):
    """Predicted output tokens of a request, already bounded by its max_tokens."""

    p10: float
    p50: float
    p90: float
    mean: float


@dataclass(frozen=True, slots=True)
class RequestView:
    """One request to place."""

    request_id: str
    arrival_s: float
    num_prompt_tokens: int
    max_tokens: int
    length: LengthQuantiles
    slo_ttft_s: float
    slo_tbt_s: float
    traffic_class: str = "default"
    cached_tokens: Mapping[str, int] = field(default_factory=dict)
    """Prompt tokens an instance already holds, by instance id; absent means none."""

    @property
    def max_cut(self) -> int:
        """The last legal cut: beta computes at least one position and emits a token."""
        return self.num_prompt_tokens + self.max_tokens - 2


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance: what it reported plus what was placed on it since."""

    instance_id: str
    model: LatencyModel
    role: Role = "any"
    num_decodes: int = 0
    decode_context_tokens: int = 0
    outstanding_prefill_tokens: int = 0
    """Prompt tokens that could be computed now, without prompts whose deadline is lost (those
    yield)."""
    inbound_prefill_tokens: int = 0
    """Parts of prompts cut elsewhere, to compute here once their KV has come."""
    late_prefill_tokens: int = 0
    """Prompt tokens of requests whose deadline is lost."""
    pending_decodes: int = 0
    """Requests that will decode here but are still being prefilled, here or elsewhere."""
    pending_decode_context_tokens: int = 0
    kv_free_tokens: int = 1 << 30
    kv_capacity_tokens: int = 1 << 30
    max_num_batched_tokens: int = 8192
    static_tokens: int | None = None
    """N when the batcher runs in mode 'static:N'."""
    slo_headroom: float = 1.0
    link_bytes_per_s: float = 270e9
    paces: dict[float, Pace] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What `pace_of` worked out, by TBT SLO: the same view serves many placements."""


class Pace(NamedTuple):
    """What an instance's state means for whoever comes, whatever the request. Milliseconds."""

    tokens_per_ms: float
    """Prefill speed."""
    wait_ms: float
    """Until the prompts that are here are done."""
    inbound_ms: float
    """Time to compute the parts of prompts that will come here from elsewhere."""
    running_decode_ms: float
    """Marginal step time of what decodes here now."""
    decode_ms: float
    """Marginal step time of what decodes or will decode here."""


@dataclass(frozen=True, slots=True)
class PoolView:
    """Every instance that takes work, and what holds for the whole pool."""

    now_s: float
    instances: tuple[InstanceView, ...]
    kv_bytes_per_token: int = 196_608
    handoff_latency_s: float = 1e-3
    unsplit_classes: frozenset[str] = frozenset()
    """Traffic classes for which the guard has turned splitting off."""

    @property
    def is_overloaded(self) -> bool:
        """Every instance has prompts that miss their deadline."""
        return all(view.late_prefill_tokens > 0 for view in self.instances)


class Prediction(NamedTuple):
    """What the policy expects of one way to run the request."""

    ttft_s: float
    tbt_s: float
    cost: float


class Candidate(NamedTuple):
    """One way to run the request."""

    alpha_id: str
    beta_id: str | None
    cut: int | None
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class Decision:
    """Where the request runs, why, and every candidate that was weighed."""

    kind: CutKind
    alpha_id: str
    beta_id: str | None
    cut: int | None
    chosen: Prediction
    unsplit: Prediction | None
    disaggregated: Prediction | None
    candidates: tuple[Candidate, ...]
    reason: str
    control_group: bool = False
    decode_holders: tuple[str, ...] = ()
    unforced: Candidate | None = None
    """What the policy would have done where the request forced its cut; ``chosen`` is of that."""

    @property
    def decode_id(self) -> str:
        """The instance that runs the last decode steps."""
        return self.beta_id or self.alpha_id


class SplitPolicy(Protocol):
    """Places requests. Pure: the same views give the same decision."""

    def place(self, request: RequestView, pool: PoolView) -> Decision: ...


class NoInstance(Exception):
    """The pool holds no instance that could take the request."""
