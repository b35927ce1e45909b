"""The event loop: arrivals, step ends, handoffs, losses; decisions by the services' own code.

Truncations, stated: KV is counted in tokens, not blocks; the prefix part of a handoff occupies
beta only from the moment it is complete; what gateway and bus cost comes once, before a request's
first step, and not with every token.
"""

from __future__ import annotations

import gc
import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from dynaserve.sim.instance import (
    ONE_MORE_TOKEN,
    Chunk,
    Segment,
    SimInstance,
    nobody_cares,
)
from dynaserve.sim.record import RequestRecord
from dynaserve.sim.traces import SimRequest
from services.global_sched.admission import Admission
from services.global_sched.length_predictor import LengthPredictor
from services.global_sched.placement import uncut
from services.global_sched.policy.views import (
    Decision,
    InstanceView,
    PoolView,
    RequestView,
    SplitPolicy,
)
from services.gpu_instance.batcher import Batcher, BatcherSettings
from shared.latency_model import LatencyModel

FULL_COLLECTION_EVERY = 5
_runs = count(1)
Event = tuple[float, int, Callable[[], None]]


@dataclass(frozen=True, slots=True)
class SimSettings:
    """The simulated pool and its SLOs. Seconds, tokens, bytes."""

    model: LatencyModel
    instances: int = 2
    batcher: str = "slo"
    slo_tbt_s: float = 0.1
    slo_ttft_s: float = 1.0
    slo_ttft_s_per_token: float = 2e-4
    kv_tokens: int = 526_000
    kv_bytes_per_token: int = 196_608
    link_bytes_per_s: float = 270e9
    handoff_latency_s: float = 1e-3
    bus_latency_s: float = 0.0
    """From a request's arrival at the gateway to its segment in the engine, and its token back."""
    step_overhead_s: float = 0.0
    """Between one step and the next, which no latency profile counts."""
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 1024
    max_tokens: int = 4096
    step_noise: float = 0.0
    """Sigma of the log-normal factor on step times; 0: the model is the truth."""
    launch_ms: float = 0.0
    """The least time of a step with prompts: engines launch such steps part by part, and decodes
    alone as one captured graph."""
    prefix_capacity: int = 256
    """Shared prefixes an instance keeps."""
    split_roles: bool = False
    """First half prefill, second half decode (for `disaggregated`)."""
    refuse_lost: bool = False
    """Admission: refuse what is predicted to miss its TTFT SLO, as the scheduler does."""
    losses: tuple[tuple[float, int], ...] = ()
    """(time, instance index) of instances that vanish."""
    warmup_s: float = 0.0
    measure_until_s: float = float("inf")
    seed: int = 0


@dataclass(slots=True)
class SimOutcome:
    """Everything a report is made from."""

    records: list[RequestRecord]
    instances: list[SimInstance]
    end_s: float = 0.0
    steps: int = 0
    handoffs: int = 0
    preemptions: int = 0
    restarts: int = 0
    stopped_early: bool = False
    decision_count: int = 0
    wasted: dict[str, int] = field(default_factory=dict)


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection: what a run makes lives to its end, scanning it is time lost.

    Afterwards it goes without, as it holds no cycles but those of requests still under way.
    """
    was_on = gc.isenabled()
    gc.unfreeze()
    if next(_runs) % FULL_COLLECTION_EVERY == 0:
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # or the next collection would look through all of it
        if was_on:
            gc.enable()


class Simulator:
    """Runs one request stream through one pool under one policy."""

    def __init__(self, settings: SimSettings, policy: SplitPolicy) -> None:
        self.settings = settings
        self.policy = policy
        self.predictor = LengthPredictor()
        self.admission = Admission()
        self.instances = [self._instance(index) for index in range(settings.instances)]
        self._by_id = {instance.instance_id: instance for instance in self.instances}
        self._events: list[Event] = []
        self._ids = count()
        self._is_inexact = settings.step_noise > 0.0 or settings.launch_ms > 0.0
        self._noise = random.Random(settings.seed + 1)
        self._link_free_s: dict[tuple[str, str], float] = {}
        self._inbound: dict[str, list[tuple[SimInstance, Segment, Segment]]] = {}
        self._betas: dict[RequestRecord, tuple[SimInstance, Segment]] = {}
        self._prefixes: dict[str, dict[str, int]] = {i.instance_id: {} for i in self.instances}
        self._views: dict[str, InstanceView] = {}
        self._stale = dict.fromkeys(self.instances)
        self.outcome = SimOutcome([], self.instances)
        self.now_s = 0.0

    def _instance(self, index: int) -> SimInstance:
        settings = self.settings
        batcher = Batcher(
            settings.model,
            BatcherSettings(max_num_batched_tokens=settings.max_num_batched_tokens),
            settings.batcher,
            initial_margin=0.05 if settings.step_noise else 0.0,
        )
        role = "any"
        if settings.split_roles:
            role = "prefill" if index < (settings.instances + 1) // 2 else "decode"
        base_ms = settings.model.base_ms + 1e3 * settings.step_overhead_s
        instance = SimInstance(
            f"i{index}",
            settings.model._replace(base_ms=base_ms),
            batcher,
            slo_tbt_s=settings.slo_tbt_s,
            kv_capacity=settings.kv_tokens,
            max_num_seqs=settings.max_num_seqs,
            role=role,
        )
        instance.launch_ms = settings.launch_ms
        instance.on_lost = partial(self._on_lost, instance)
        return instance

    # ---- loop ----------------------------------------------------------------------------

    def run(
        self,
        requests: Sequence[SimRequest],
        *,
        max_missed: int | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> SimOutcome:
        """Simulate until every request is done, or more than ``max_missed`` measured ones miss."""
        self._missed = 0
        with collector_paused():
            self._run(requests, max_missed, progress)
        for instance in self.instances:
            instance.on_lost = nobody_cares  # else a cycle
        return self.outcome

    def _run(
        self,
        requests: Sequence[SimRequest],
        max_missed: int | None,
        progress: Callable[[float], None] | None,
    ) -> None:
        for at_s, index in self.settings.losses:
            self._push(at_s, partial(self._lose, self.instances[index]))
        for due in self._occurrences(requests):
            if progress and self.outcome.steps % 4096 == 0:
                progress(self.now_s)
            if isinstance(due, SimRequest):
                self._arrive(due)
            else:
                due[2]()
            if max_missed is not None and self._missed > max_missed:
                self.outcome.stopped_early = True
                break
        self.outcome.end_s = self.now_s

    def _occurrences(self, requests: Sequence[SimRequest]) -> Iterator[SimRequest | Event]:
        """Arrivals and events in time order."""
        events = self._events
        arrivals = iter(requests)
        coming = next(arrivals, None)
        while events or coming is not None:
            if coming is not None and (not events or coming.arrival_s <= events[0][0]):
                self.now_s = coming.arrival_s
                yield coming
                coming = next(arrivals, None)
            else:
                event = heapq.heappop(events)
                self.now_s = event[0]
                yield event

    def _push(self, at_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._ids), happen))

    # ---- placement -----------------------------------------------------------------------

    def _arrive(self, request: SimRequest) -> None:
        settings = self.settings
        slo_ttft_s = settings.slo_ttft_s + settings.slo_ttft_s_per_token * request.prompt_tokens
        measured = settings.warmup_s <= request.arrival_s < settings.measure_until_s
        record = RequestRecord(request, slo_ttft_s, 1e3 * settings.slo_tbt_s, measured)
        self.outcome.records.append(record)
        self._place(record)

    def _request_view(self, record: RequestRecord) -> RequestView:
        request = record.request
        max_tokens = max(self.settings.max_tokens, request.output_tokens) - record.emitted
        cached = self._cached_tokens(request) if request.prefix_id else {}
        return RequestView(
            request.request_id,
            record.arrival_s,
            request.prompt_tokens + record.emitted,
            max_tokens,
            self.predictor.predict(request.traffic_class, max_tokens),
            record.slo_ttft_s,
            self.settings.slo_tbt_s,
            request.traffic_class,
            cached,
        )

    def _cached_tokens(self, request: SimRequest) -> dict[str, int]:
        """By instance that holds the request's prefix."""
        prefix, tokens = request.prefix_id, request.prefix_tokens
        holding = [each for each in self._prefixes.items() if prefix in each[1]]
        return {instance_id: min(held[prefix], tokens) for instance_id, held in holding}

    def pool_view(self) -> PoolView:
        """The pool as it is now; only instances that changed since the last look are seen anew."""
        for instance in self._stale:
            if instance.alive:
                self._views[instance.instance_id] = self._view(instance)
            else:
                self._views.pop(instance.instance_id, None)
        self._stale.clear()
        return PoolView(
            self.now_s,
            tuple(self._views.values()),
            self.settings.kv_bytes_per_token,
            self.settings.handoff_latency_s,
        )

    def _touch(self, instance: SimInstance) -> None:
        """To be called for every instance that an event changes."""
        self._stale[instance] = None

    def _view(self, instance: SimInstance) -> InstanceView:
        settings = self.settings
        return InstanceView(
            instance.instance_id,
            instance.batcher.online.model,
            instance.role,  # type: ignore[arg-type]
            instance.num_decodes,
            instance.context_sum,
            instance.outstanding_tokens - instance.lost_tokens,
            instance.inbound_tokens,
            instance.lost_tokens,
            len(instance.pending),
            instance.pending_context,
            instance.kv_capacity - instance.kv_used,
            instance.kv_capacity,
            settings.max_num_batched_tokens,
            instance.batcher.static_tokens,
            1.0,
            settings.link_bytes_per_s,
            instance.batcher.margin,
        )

    def _place(self, record: RequestRecord) -> None:
        view = self._request_view(record)
        pool = self.pool_view()
        if not pool.instances:
            self._refuse(record)
            return
        decision = self.policy.place(view, pool)
        if record.emitted and decision.cut is not None:
            decision = uncut(decision, "resumed")  # as the scheduler does
        self.outcome.decision_count += 1
        if self.settings.refuse_lost and not self._is_admitted(record, view, decision, pool):
            self._refuse(record)
            return
        record.decision = decision
        record.view = view
        record.cut = decision.cut
        self._dispatch(record, view.num_prompt_tokens, decision)

    def _is_admitted(
        self, record: RequestRecord, view: RequestView, decision: Decision, pool: PoolView
    ) -> bool:
        if record.decision is not None:
            return True  # it was, before its instance was lost
        queued = sum(len(instance.pending) + instance.num_lost for instance in self.instances)
        bound = self.admission.settings.max_queued * len(self.instances)
        overloaded = pool.is_overloaded
        return self.admission.judge(view, decision, queued, bound, overloaded).admitted

    def _refuse(self, record: RequestRecord) -> None:
        record.refused = True
        self._judge(record)

    def _dispatch(self, record: RequestRecord, prompt: int, decision: Decision) -> None:
        """Turn a decision into segments."""
        left = record.request.output_tokens - record.emitted
        alpha = self._by_id[decision.alpha_id]
        hit = self._hit(record, alpha, prompt)
        deadline = record.arrival_s + record.slo_ttft_s
        cut = decision.cut
        whole = decision.beta_id is None or cut is None
        if whole:
            segment = Segment(record, "whole", prompt - hit, hit, left - 1, True, deadline)
            decoder = alpha
        else:
            assert cut is not None and decision.beta_id is not None
            decoder = self._by_id[decision.beta_id]
            steps = min(max(cut - prompt, 0), left - 1)
            own = min(cut, prompt)
            first = cut >= prompt
            hit = min(hit, own - 1)
            beta_s = 0.0 if first else self._tail_s(prompt - own)
            segment = Segment(record, "alpha", own - hit, hit, steps, first, deadline - beta_s)
            emitted = cut - prompt + 1 if first else 0
            tail = max(prompt - cut, 0)
            rest = left - emitted if first else left - 1
            beta = Segment(record, "beta", tail, cut, rest, not first, deadline)
            self._betas[record] = (decoder, beta)
            if tail:
                decoder.expect_part(beta)
        segment.last_token_s = self.now_s if record.emitted else -1.0
        decoder.expect(record, prompt)
        self._touch(decoder)
        alpha.outstanding_tokens += segment.remaining
        alpha.hold(hit)
        self._remember_prefix(record, alpha)
        record.live = [(alpha, segment)]
        if self.settings.bus_latency_s:
            self._touch(alpha)
            arrives_s = self.now_s + self.settings.bus_latency_s
            self._push(arrives_s, partial(self._deliver, alpha, segment))
        else:
            self._deliver(alpha, segment)

    def _deliver(self, alpha: SimInstance, segment: Segment) -> None:
        """The segment reaches its engine, unless that was lost or the request withdrawn."""
        if segment.cancelled:
            if alpha.alive:
                alpha.free(segment.context)
                alpha.outstanding_tokens -= segment.remaining
                self._touch(alpha)
        elif alpha.alive:
            alpha.add_prompt(segment)
            self._kick(alpha)
        else:
            self._restart(segment.record)

    def _tail_s(self, tokens: int) -> float:
        """Time beta needs for its part of the prompt, for alpha's deadline."""
        return 1e-3 * self.settings.model.prefill_ms * tokens + 2.0 * self.settings.slo_tbt_s

    def _hit(self, record: RequestRecord, instance: SimInstance, prompt: int) -> int:
        if not record.request.prefix_id:
            return 0
        held = self._prefixes[instance.instance_id].get(record.request.prefix_id, 0)
        hit = min(held, record.request.prefix_tokens, prompt - 1)
        if hit and not instance.can_hold(hit):
            return 0
        record.hit_tokens += hit
        return hit

    def _remember_prefix(self, record: RequestRecord, instance: SimInstance) -> None:
        """Least recently used prefixes go first."""
        prefix = record.request.prefix_id
        if not prefix:
            return
        held = self._prefixes[instance.instance_id]
        held.pop(prefix, None)
        held[prefix] = record.request.prefix_tokens
        if len(held) > self.settings.prefix_capacity:
            del held[next(iter(held))]

    # ---- steps ---------------------------------------------------------------------------

    def _kick(self, instance: SimInstance) -> None:
        """Start a step if it can, after an event that concerned the instance."""
        self._stale[instance] = None
        if instance.busy or not instance.alive:
            return
        duration_ms = instance.start_step(self.now_s) if instance.has_work else None
        if duration_ms is None:
            for alpha, done, beta_segment in self._inbound.pop(instance.instance_id, ()):
                self._keep(alpha, done, beta_segment)
            return
        if self._is_inexact:
            duration_ms *= self._noise.lognormvariate(0.0, self.settings.step_noise)
        end_s = self.now_s + 1e-3 * duration_ms
        self._push(end_s, partial(self._end_step, instance, duration_ms))

    def _end_step(self, instance: SimInstance, duration_ms: float) -> None:
        if not instance.alive:
            return
        result = instance.finish_step(self.now_s, duration_ms, self._is_inexact)
        self.outcome.steps += 1
        if result is not ONE_MORE_TOKEN:
            self._stream(instance, result.chunks)
            for segment in result.prefilled:
                self._prefilled(instance, segment)
            for segment in result.finished:
                self._decoded(instance, segment)
        if instance.lacks_room:
            for segment in instance.preempt():
                self._preempted(instance, segment)
        if self._inbound and instance.instance_id in self._inbound:
            self._retry_inbound(instance)
        instance.sweep()
        self._kick(instance)

    def _stream(self, alpha: SimInstance, chunks: Sequence[Chunk]) -> None:
        """Chunks of alphas start to move as soon as they are computed."""
        for segment, tokens in chunks:
            if segment.role == "alpha" and not segment.cancelled:
                beta, _ = self._betas[segment.record]
                link = (alpha.instance_id, beta.instance_id)
                start = max(self.now_s, self._link_free_s.get(link, 0.0))
                moved = tokens * self.settings.kv_bytes_per_token
                self._link_free_s[link] = start + moved / self.settings.link_bytes_per_s

    def _prefilled(self, instance: SimInstance, segment: Segment) -> None:
        record = segment.record
        if segment.cancelled:
            instance.free(segment.context)
            return
        if segment.emits_first:
            self._emit_first(record, segment)
        if segment.role == "alpha" and (not segment.emits_first or segment.decode_steps == 0):
            if record.emitted >= record.request.output_tokens:
                self._end_alpha_early(instance, segment)
            else:
                self._hand_over(instance, segment)
            return
        if segment.role != "alpha":
            self._settle(instance, record)
        if segment.decode_steps <= 0:
            self._finish(instance, segment)
        else:
            instance.join_decodes(segment, self.now_s)

    def _emit_first(self, record: RequestRecord, segment: Segment) -> None:
        if record.first_token_s < 0.0:
            record.first_token_s = self.now_s
        elif segment.last_token_s >= 0.0:
            record.long_gaps_ms.append(1e3 * (self.now_s - segment.last_token_s))
        segment.last_token_s = -1.0
        record.emitted += 1

    def _on_lost(self, instance: SimInstance, segment: Segment) -> None:
        """It yields to all others from now on: nobody counts on it."""
        beta, beta_segment = self._betas.get(segment.record, (instance, segment))
        self._settle(beta, segment.record)
        beta.settle_part(beta_segment)

    def _settle(self, decoder: SimInstance, record: RequestRecord) -> None:
        """The request decodes now, or will not in time: it is no longer pending."""
        self._touch(decoder)
        decoder.settle(record)

    def _prompt_of(self, record: RequestRecord) -> int:
        return record.view.num_prompt_tokens if record.view else record.request.prompt_tokens

    def _decoded(self, instance: SimInstance, segment: Segment) -> None:
        record = segment.record
        if segment.cancelled:
            instance.free(segment.context)
        elif segment.role == "alpha" and record.emitted < record.request.output_tokens:
            segment.last_token_s = self.now_s
            self._hand_over(instance, segment)
        elif segment.role == "alpha":
            self._end_alpha_early(instance, segment)
        else:
            self._finish(instance, segment)

    def _finish(self, instance: SimInstance, segment: Segment) -> None:
        instance.free(segment.context)
        record = segment.record
        record.finished_s = self.now_s
        self.predictor.observe(record.request.traffic_class, record.request.output_tokens)
        if record.decision is not None and self.settings.refuse_lost:
            self.admission.error.observe(record.decision.chosen.ttft_s, record.ttft_s)
        record.live.clear()
        self._judge(record)

    def _judge(self, record: RequestRecord) -> None:
        if record.measured and not record.meets_slo():
            self._missed += 1

    def _preempted(self, instance: SimInstance, segment: Segment) -> None:
        """Recompute from the start; the next token comes when that is done."""
        self.outcome.preemptions += 1
        segment.last_token_s = self.now_s
        segment.remaining, segment.context = segment.context, 0
        segment.decode_steps -= 1
        segment.emits_first = True
        segment.started = segment.lost = False
        if segment.role != "alpha":
            instance.expect(segment.record, self._prompt_of(segment.record))
        instance.outstanding_tokens += segment.remaining
        instance.add_prompt(segment, first=True)

    # ---- handoff -------------------------------------------------------------------------

    def _hand_over(self, alpha: SimInstance, segment: Segment) -> None:
        beta, beta_segment = self._betas[segment.record]
        if segment.emits_first or segment.decode_steps:
            beta_segment.last_token_s = self.now_s
        link = (alpha.instance_id, beta.instance_id)
        ready = max(self.now_s, self._link_free_s.get(link, 0.0)) + self.settings.handoff_latency_s
        self.outcome.handoffs += 1
        self._push(ready, partial(self._adopt, alpha, segment, beta_segment))

    def _adopt(self, alpha: SimInstance, done: Segment, beta_segment: Segment) -> None:
        record = done.record
        if done.cancelled or beta_segment.cancelled:
            if alpha.alive:
                alpha.free(done.context)
                self._touch(alpha)
            return
        beta, _ = self._betas[record]
        if not alpha.alive:
            self._restart(record)
            return
        if not beta.can_hold(done.context):
            waiting = self._inbound.setdefault(beta.instance_id, [])
            waiting.append((alpha, done, beta_segment))
            self._kick(beta)
            return
        del self._betas[record]
        alpha.free(done.context)
        beta.hold(done.context)
        beta.settle_part(beta_segment)
        beta.outstanding_tokens += beta_segment.remaining
        beta_segment.context = done.context
        record.live = [(beta, beta_segment)]
        if beta_segment.remaining > 0:
            beta.add_prompt(beta_segment)
        else:
            self._settle(beta, record)
            beta.join_decodes(beta_segment, self.now_s)
        self._kick(beta)
        self._kick(alpha)

    def _keep(self, alpha: SimInstance, done: Segment, beta_segment: Segment) -> None:
        """Beta will never have room (both wait for each other): alpha goes on by itself."""
        record = done.record
        if done.cancelled or not alpha.alive:
            self._adopt(alpha, done, beta_segment)
            return
        beta, _ = self._betas.pop(record)
        beta.settle_part(beta_segment)
        self._settle(beta, record)
        beta_segment.context = done.context
        record.live = [(alpha, beta_segment)]
        alpha.expect(record, self._prompt_of(record))
        alpha.outstanding_tokens += beta_segment.remaining
        if beta_segment.remaining > 0:
            alpha.add_prompt(beta_segment)
        else:
            self._settle(alpha, record)
            alpha.join_decodes(beta_segment, self.now_s)
        self._kick(alpha)

    def _retry_inbound(self, beta: SimInstance) -> None:
        for alpha, done, beta_segment in self._inbound.pop(beta.instance_id):
            self._adopt(alpha, done, beta_segment)

    def _end_alpha_early(self, alpha: SimInstance, segment: Segment) -> None:
        """The request ended before its cut: beta never gets it."""
        beta, beta_segment = self._betas.pop(segment.record)
        beta.settle_part(beta_segment)
        self._settle(beta, segment.record)
        self._finish(alpha, segment)

    # ---- loss ----------------------------------------------------------------------------

    def _lose(self, instance: SimInstance) -> None:
        """Everything the instance took part in is placed again, with what was emitted so far."""
        self._touch(instance)
        affected = {segment.record: None for segment in instance.drop_all()}
        for record, (beta, _) in self._betas.items():
            if beta is instance:
                affected[record] = None
        unplaced = self._inbound.pop(instance.instance_id, [])
        for record in affected:
            self._restart(record)
        for alpha, done, beta_segment in unplaced:
            self._adopt(alpha, done, beta_segment)  # withdrawn by now: alpha frees it

    def _restart(self, record: RequestRecord) -> None:
        """Withdraw what is left of the request and place it anew."""
        pair = self._betas.pop(record, None)
        if pair:
            beta, beta_segment = pair
            beta_segment.cancelled = True
            if beta.alive:
                beta.settle_part(beta_segment)
                self._settle(beta, record)
        for holder, segment in record.live:
            if holder.alive and not segment.cancelled:
                holder.cancel(segment)
                self._touch(holder)
        record.live.clear()
        record.restarts += 1
        self.outcome.restarts += 1
        self._place(record)
