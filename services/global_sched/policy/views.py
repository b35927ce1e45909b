"""What a split policy sees and says: frozen views of a request and of the pool, and a decision.

Times are seconds unless the name says milliseconds; sizes are tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from operator import itemgetter
from typing import Literal, NamedTuple, Protocol

from services.global_sched.policy.snapshot import snapshot
from shared.latency_model import LatencyModel

Role = Literal["any", "prefill", "decode"]
CutKind = Literal["unsplit", "cut"]
DEFAULT_LINK_BYTES_PER_S = 270e9


class LengthQuantiles(NamedTuple):
    """Predicted output tokens of a request, already bounded by its max_tokens."""

    p10: float
    p50: float
    p90: float
    mean: float


@snapshot
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


@snapshot
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
    link_bytes_per_s: float = DEFAULT_LINK_BYTES_PER_S
    step_margin: float = 0.0
    """The batcher plans steps beside decodes for the TBT SLO / (1 + this)."""
    paces: dict[float, Pace] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What `pace_of` worked out, by TBT SLO: the same view serves many placements."""


class Pace:
    """What an instance's state means for whoever comes, whatever the request. Milliseconds, tokens.

    Read for every instance at every decision: a plain class with slots, which nobody changes.
    """

    __slots__ = (
        "all_wait_ms",
        "base_ms",
        "context_ms",
        "decode_context_tokens",
        "decode_ms",
        "each_decode_ms",
        "inbound_ms",
        "instance_id",
        "kept_tbt_ms",
        "kept_tbt_s",
        "kv_capacity_tokens",
        "kv_free_tokens",
        "num_decodes",
        "pending_decode_ms",
        "rank",
        "running_decode_ms",
        "step_margin",
        "step_ms",
        "tokens_per_ms",
        "wait_ms",
    )

    def __init__(
        self,
        view: InstanceView,
        tokens_per_ms: float,
        running_decode_ms: float,
        kept_tbt_s: float,
    ) -> None:
        """``tokens_per_ms``: prefill speed. ``running_decode_ms``: marginal step time of what
        decodes here now. ``kept_tbt_s``: the TBT SLO less what its batcher keeps as a margin."""
        self.instance_id = view.instance_id
        self.num_decodes = view.num_decodes
        self.decode_context_tokens = view.decode_context_tokens
        self.tokens_per_ms = tokens_per_ms
        self.step_margin, self.kept_tbt_s = view.step_margin, kept_tbt_s
        self.kept_tbt_ms = 1e3 * kept_tbt_s
        """The longest step with decodes that is planned: one that takes longer is in time."""
        self.running_decode_ms = running_decode_ms
        base_ms, each_ms, context_ms, _, _ = view.model
        self.base_ms, self.each_decode_ms, self.context_ms = base_ms, each_ms, context_ms
        outstanding, inbound = view.outstanding_prefill_tokens, view.inbound_prefill_tokens
        wait_ms = self.wait_ms = outstanding / tokens_per_ms
        """Until the prompts that are here are done."""
        inbound_ms = self.inbound_ms = inbound / tokens_per_ms
        """Time to compute the parts of prompts that will come here from elsewhere."""
        self.all_wait_ms = wait_ms + inbound_ms
        """Until everything placed here is done, what is inbound included."""
        decode_ms = self.decode_ms = (
            running_decode_ms
            + each_ms * view.pending_decodes
            + context_ms * view.pending_decode_context_tokens
        )
        """Marginal step time of what decodes or will decode here."""
        self.pending_decode_ms = decode_ms - running_decode_ms
        """The part of it that does not decode yet."""
        self.step_ms = base_ms + decode_ms
        """A step without prefill."""
        self.rank = (-decode_ms, wait_ms)
        """Smallest first: who decodes most already."""
        self.kv_free_tokens = view.kv_free_tokens - outstanding - inbound
        """Free KV less what placed prompts will take."""
        self.kv_capacity_tokens = view.kv_capacity_tokens

    def own_decode_ms(self, context_tokens: float) -> float:
        """Marginal step time of one more request that decodes here."""
        return self.each_decode_ms + self.context_ms * context_tokens

    def prefill_ms(self, tokens: float, horizon_ms: float) -> float:
        """Until ``tokens`` of a new prompt would be done, the queue first.

        What is inbound comes evenly over the horizon, and goes first when it is there: it is older.
        """
        own_ms = self.wait_ms + tokens / self.tokens_per_ms
        if not self.inbound_ms:
            return own_ms
        share = self.inbound_ms / horizon_ms
        if own_ms < (1.0 - share) * horizon_ms:
            return own_ms / (1.0 - share)
        return own_ms + self.inbound_ms


@snapshot
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


Weighed = tuple[str, str | None, int | None, float, float, float]
"""A candidate as policies weigh dozens of them: alpha, beta, cut, TTFT, TBT (seconds), cost."""

ttft_of, cost_of = itemgetter(3), itemgetter(5)
"""Of a `Weighed`."""


def prediction_of(weighed: Weighed) -> Prediction:
    return Prediction(*weighed[3:])


class Alternatives(Protocol):
    """What else could have been done; a policy may work it out when somebody asks."""

    @property
    def weighed(self) -> tuple[Weighed, ...]:
        """Every candidate, the chosen one too."""

    @property
    def disaggregated(self) -> Prediction | None:
        """Of the best cut at the prompt's end."""

    @property
    def decode_holders(self) -> tuple[str, ...]:
        """Who should decode, in the order of names."""

    def cheapest(self, count: int) -> list[Weighed]:
        """So many of ``weighed``, the cheapest first."""


class Listed(NamedTuple):
    """`Alternatives` that are known."""

    weighed: tuple[Weighed, ...]
    disaggregated: Prediction | None = None
    decode_holders: tuple[str, ...] = ()

    def cheapest(self, count: int) -> list[Weighed]:
        return sorted(self.weighed, key=cost_of)[:count]


@snapshot
class Decision:
    """Where the request runs, why, and every candidate there was."""

    kind: CutKind
    alpha_id: str
    beta_id: str | None
    cut: int | None
    chosen: Prediction
    unsplit: Prediction | None
    alternatives: Alternatives = field(compare=False, repr=False)
    reason: str
    control_group: bool = False
    unforced: Weighed | None = None
    """What the policy would have done where the request forced its cut; ``chosen`` is of that."""

    @property
    def weighed(self) -> tuple[Weighed, ...]:
        return self.alternatives.weighed

    @property
    def disaggregated(self) -> Prediction | None:
        return self.alternatives.disaggregated

    @property
    def decode_holders(self) -> tuple[str, ...]:
        return self.alternatives.decode_holders

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every candidate, told apart by name: made when somebody asks."""
        return tuple(Candidate(*each[:3], prediction_of(each)) for each in self.weighed)

    @property
    def decode_id(self) -> str:
        """The instance that runs the last decode steps."""
        return self.beta_id or self.alpha_id


class SplitPolicy(Protocol):
    """Places requests. Pure: the same views give the same decision."""

    def place(self, request: RequestView, pool: PoolView) -> Decision: ...


class NoInstance(Exception):
    """The pool holds no instance that could take the request."""
