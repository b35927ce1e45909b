"""One request between its first byte and its last, as the gateway keeps it."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from services.gateway.emitters import Spell, emitters
from services.gateway.record import Timeline
from services.gateway.recovery import Failure, Situation
from services.gateway.step_history import StepHistory
from services.gateway.stream import TokenStream
from shared.clock import Clock
from shared.errors import DynaServeError
from shared.schemas.events import Emitter, Recovery, RequestRecord, StepsSeen
from shared.schemas.handoff import Transport
from shared.schemas.message import num_tokens, pack_tokens
from shared.schemas.place import Place, Plan
from shared.schemas.request import GenerationRequest
from shared.schemas.tokens import SegmentTiming, TokenDelta

Outcome = Literal["stop", "length", "abort", "error", "repetition", "refused"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What the HTTP side hands over."""

    request: GenerationRequest
    forced_cut: int | None = None
    forced_transport: Transport | None = None
    http_request_id: str = ""
    operation: str = "text_completion"
    received_s: float | None = None
    """Unix time of the HTTP request's head."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    """What is told of a request together with its first token. Monotonic seconds."""

    num_prompt_tokens: int
    num_cached_tokens: int
    submitted_s: float
    placed_s: float
    queued_s: float


@dataclass(frozen=True, slots=True)
class Delivered:
    """Tokens in order, ready for the client."""

    delta: TokenDelta
    first: FirstToken | None = None


class Sink(Protocol):
    """Where results go: the HTTP front half."""

    def deliver(self, outputs: list[Delivered]) -> None:
        """All tokens that became ready together."""

    def placed(self, request_id: str, plan: Plan) -> None:
        """Where the request runs from now on; may come behind its first tokens."""

    def fail(self, request_id: str, error: DynaServeError) -> None:
        """The request ends here; called at most once, and nothing is delivered after it."""


@dataclass(slots=True)
class InFlight:
    """The state of one request. ``epoch`` is that of its latest placement, 0 before the first."""

    ask: Ask
    stream: TokenStream
    timeline: Timeline
    epoch: int = 0
    attempts: int = 0
    plan: Plan | None = None
    placing_since_s: float = 0.0
    placed_s: float = 0.0
    place_s: float = 0.0
    gap_since_s: float | None = None
    ended_since_s: float | None = None
    num_cached_tokens: int = 0
    avoid: list[str] = field(default_factory=list)
    timings: list[SegmentTiming] = field(default_factory=list)
    spells: list[Spell] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    outcome: Outcome | None = None
    error: str | None = None
    over_s: float = 0.0

    @property
    def request_id(self) -> str:
        return self.ask.request.request_id

    def situation(self, clock: Clock) -> Situation:
        """What the decisions in ``recovery`` look at."""
        return Situation(
            attempts=self.attempts,
            now_s=clock.unix_s(),
            deadline_s=self.ask.request.deadline_s,
            placing_for_s=clock.monotonic_s() - self.placing_since_s,
            has_tokens=bool(self.stream.token_ids),
        )

    def next_epoch(self) -> None:
        """Begin a new placement; everything of the one before is refused from now on."""
        self.epoch += 1
        self.attempts += 1
        self.plan = None
        self.gap_since_s = None
        self.ended_since_s = None
        self.stream.restart(self.epoch)

    def planned(self, plan: Plan, now_s: float) -> None:
        """The latest placement stands."""
        self.note(plan)
        self.placed_s = now_s
        self.place_s += now_s - self.placing_since_s
        if self.recoveries:
            last = self.recoveries[-1]
            update = {"replaced_s": last.replaced_s or now_s - self.placing_since_s}
            self.recoveries[-1] = last.model_copy(update=update)

    def note(self, plan: Plan) -> None:
        """Remember a plan and which positions it is to bring; tokens may have overtaken it."""
        start = self.stream.num_prompt_tokens
        self.plan = plan
        self.spells.append((self.recoveries[-1].position if self.recoveries else start, plan))

    def failed(self, failed: Failure, unix_s: float) -> None:
        """The latest placement is given up; another follows."""
        self.recoveries.append(
            Recovery(
                epoch=self.epoch,
                at_s=unix_s,
                code=failed.code,
                message=failed.message,
                instance_id=failed.instance_id,
                position=self.stream.position,
            )
        )

    def place_message(self, gateway_id: str) -> Place:
        """The question for the scheduler: the request with what the client already has."""
        resumed = bool(self.stream.token_ids)
        request = self.ask.request
        if resumed:
            tokens = pack_tokens(self.stream.token_ids)
            request = request.model_copy(update={"output_token_ids": tokens, "splittable": False})
        return Place(
            request=request,
            epoch=self.epoch,
            gateway_id=gateway_id,
            forced_cut=None if resumed else self.ask.forced_cut,
            forced_transport=self.ask.forced_transport,
            avoid=self.avoid,
        )

    def take(self, delta: TokenDelta, now_s: float) -> list[Delivered]:
        """Run a delta through the stream; returns what the client gets now."""
        ready = self.stream.accept(delta)
        self.gap_since_s = (self.gap_since_s or now_s) if self.stream.has_gap else None
        return [self._delivered(each, now_s) for each in ready]

    def _delivered(self, delta: TokenDelta, now_s: float) -> Delivered:
        is_first = self.timeline.first_s is None
        count = len(delta.token_ids) if delta.pooling_output is None else 1
        self.timeline.tokens(count, now_s)
        if not is_first or not count:
            return Delivered(delta)
        self.num_cached_tokens = self._cached(delta)
        first = FirstToken(
            num_prompt_tokens=self.stream.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            submitted_s=self.timeline.arrived_s,
            placed_s=self.placed_s or now_s,
            queued_s=delta.queued_s or 0.0,
        )
        return Delivered(delta, first)

    def _cached(self, delta: TokenDelta) -> int:
        """Prompt tokens found in a prefix cache.

        A first token from beta (cut inside the prompt) counts the handed-over positions as
        cached on its instance; alpha computed them, so they are taken off.
        """
        cached = delta.num_cached_tokens or 0
        cut = self.plan.cut if self.plan is not None else None
        if cut is not None and cut < self.stream.num_prompt_tokens:
            cached = max(0, cached - cut)
        return min(cached, self.stream.num_prompt_tokens)

    def finish(self, outcome: Outcome, now_s: float, error: str | None = None) -> None:
        """The request is over; only its record is still to come."""
        self.outcome = outcome
        self.error = error
        self.over_s = now_s

    @property
    def record_is_complete(self) -> bool:
        """Whether nothing more is to come: every segment of the last plan told when it ran."""
        if self.plan is None:  # it may yet come, unless nothing was placed
            return self.outcome in ("refused", "error")
        expected = 1 if self.plan.beta_id is None else 2
        return sum(t.epoch == self.epoch for t in self.timings) >= expected

    def record(self, gateway_id: str, history: StepHistory) -> RequestRecord:
        """What is kept of the request."""
        request, timeline = self.ask.request, self.timeline
        outcome = self.outcome or "error"
        finished = outcome in ("stop", "length", "repetition")
        slo_met = finished and timeline.meets(request.slo)
        return RequestRecord(
            request_id=request.request_id,
            gateway_id=gateway_id,
            http_request_id=self.ask.http_request_id,
            arrival_at_s=request.arrival_time_s,
            num_prompt_tokens=num_tokens(request.prompt_token_ids),
            num_output_tokens=len(self.stream.token_ids),
            num_cached_tokens=self.num_cached_tokens,
            slo=request.slo,
            outcome=outcome,
            error=self.error,
            place_s=self.place_s,
            ttft_s=timeline.ttft_s,
            tbt_p99_s=timeline.tbt_p99_s,
            tpot_s=timeline.tpot_s,
            e2e_s=self.over_s - timeline.arrived_s,
            slo_met=slo_met,
            epochs=max(1, self.epoch),
            plan=self.plan,
            segments=self.timings,
            recoveries=self.recoveries,
            emitters=self._emitters(),
            steps=[] if slo_met else self._steps(history),
        )

    def _emitters(self) -> list[Emitter]:
        if self.timeline.first_s is None:
            return []
        prompt_tokens = num_tokens(self.ask.request.prompt_token_ids)
        return emitters(
            self.spells, prompt_tokens, self.timeline.gaps_s, self.ask.request.slo.tbt_s
        )

    def _steps(self, history: StepHistory) -> list[StepsSeen]:
        """What the instances' steps were like while they ran for this request."""
        ttft_s = self.timeline.ttft_s
        first_s = float("inf") if ttft_s is None else self.ask.request.arrival_time_s + ttft_s
        return [steps for t in self.timings for steps in history.of_segment(t, first_s)]
