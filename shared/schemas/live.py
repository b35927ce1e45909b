"""Gateway -> live page and `dynaserve top`: the pool at a glance, a few times a second."""

from typing import Literal

from pydantic import Field

from shared.schemas.message import Message, Part
from shared.schemas.request import Slo


class Distribution(Part):
    """How requests of the last minute spread, in bins of equal ratio. Seconds."""

    first_edge_s: float = Field(description="lower edge of the first bin")
    ratio: float = Field(description="of a bin's upper edge to its lower")
    counts: list[int]
    num_beyond: int = Field(default=0, description="requests beyond the objective, counted exactly")
    p50_s: float | None = None
    p99_s: float | None = None


class ClassStatus(Part):
    """One SLO class over the last minute."""

    name: str
    slo: Slo
    num_requests: int
    num_met: int
    num_refused: int
    num_failed: int
    goodput_per_s: float = Field(description="requests per second that met both objectives")
    tokens_per_s: float = Field(description="output tokens of requests that ended")
    ttft: Distribution
    tbt: Distribution = Field(description="each request's P99 gap between tokens")
    history: list[tuple[int, int]] = Field(
        description="met and all requests of each past ten seconds, the oldest first"
    )


class InstanceStatus(Part):
    """One instance as its last telemetry shows it."""

    instance_id: str
    state: Literal["ready", "draining", "silent"]
    silent_s: float = Field(description="since its last report")
    role: str
    device: str
    engine: str
    mode: str = Field(description="of its batcher")
    num_decodes: int
    num_prefills: int = Field(description="running requests whose prompt is being computed")
    num_waiting: int
    num_waiting_for_kv: int
    outstanding_prefill_tokens: int
    budget_tokens: int
    step_margin: float = Field(
        default=0.0, description="steps are planned for the TBT objective / (1 + this)"
    )
    kv_used: float = Field(description="share of its blocks")
    step_s: float = Field(description="the worst of the last seconds; 0: idle")
    predicted_step_s: float = Field(description="of the same step")
    step_share: float = Field(description="of the tightest TBT objective in the batch; 1 is late")
    tokens_per_s: float
    num_preemptions: int


class Flow(Part):
    """Handoffs of one ordered pair of instances over the last minute."""

    alpha_id: str
    beta_id: str
    count: int
    num_failed: int
    num_bytes: int
    longest_exposed_s: float


class HandoffRow(Part):
    """One handoff that is over."""

    handoff_id: str
    at_s: float = Field(description="unix time at the gateway")
    alpha_id: str
    beta_id: str
    outcome: str
    transport: str
    num_bytes: int
    transfer_s: float
    exposed_s: float


class RequestRow(Part):
    """One request that is over."""

    request_id: str
    http_request_id: str
    at_s: float = Field(description="unix time of its end")
    slo_class: str
    slo: Slo
    num_prompt_tokens: int
    num_output_tokens: int
    alpha_id: str | None = None
    beta_id: str | None = None
    cut: int | None = None
    ttft_s: float | None = None
    tbt_p99_s: float | None = None
    e2e_s: float
    outcome: str
    slo_met: bool
    epochs: int
    cause: str | None = Field(default=None, description="kind of the weightiest cause of a miss")


class LiveSnapshot(Message):
    """All of it; every snapshot is whole, so that one that was missed does not matter."""

    kind: Literal["live"] = "live"
    at_s: float
    pool: str
    gateway_id: str
    problem: str | None = Field(default=None, description="why nothing can be placed now")
    policies: list[str]
    num_gateways: int
    num_schedulers: int
    num_coordinators: int
    num_in_flight: int = Field(description="at this gateway")
    window_s: float = Field(description="length of the last minute, less when just started")
    classes: list[ClassStatus]
    instances: list[InstanceStatus]
    flows: list[Flow] = Field(description="the busiest, at most a dozen")
    num_flows: int
    handoffs: list[HandoffRow] = Field(description="the newest first")
    requests: list[RequestRow] = Field(description="the newest first")
