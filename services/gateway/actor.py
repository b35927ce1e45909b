"""The gateway on the bus: places requests, puts their tokens in order, recovers them, cancels them.

Reading order: ``submit`` (a request comes in), ``_place`` (until it has a plan), ``_on_frame`` (the
hot path), ``_recover`` (something failed), ``_over`` (its end).
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterable

from pydantic import TypeAdapter

from services.gateway import metrics, recovery
from services.gateway.in_flight import Ask, Delivered, InFlight, Outcome, Sink
from services.gateway.live.broadcast import Broadcast
from services.gateway.live.view import LiveView
from services.gateway.placing import ask_for_plan
from services.gateway.record import Timeline
from services.gateway.record_book import RecordBook
from services.gateway.recovery import Failure
from services.gateway.settings import GatewaySettings
from services.gateway.step_history import StepHistory
from services.gateway.stream import GapTooLarge, TokenStream
from services.gateway.traces import RequestTraces
from shared.actor import Actor
from shared.bus import Bus, Delivery, encode
from shared.clock import Clock
from shared.errors import (
    DynaServeError,
    InvalidRequest,
    NoInstance,
    Overloaded,
    RequestFailed,
)
from shared.registry import RECORD_TTL_S, Heartbeat, PoolRegistry
from shared.schemas.events import REQUEST_RECORD, RequestRecord
from shared.schemas.handoff import HandoffRecord
from shared.schemas.message import num_tokens
from shared.schemas.place import Plan
from shared.schemas.registry import GatewayRecord, InstanceRecord, Record
from shared.schemas.segment import ResetPrefixCache, SegmentCancel
from shared.schemas.telemetry import InstanceLoad
from shared.schemas.tokens import (
    GATEWAY,
    GatewayMessage,
    SegmentFailed,
    SegmentTiming,
    TokenDelta,
    TokenFrame,
)
from shared.subjects import Subjects

LOAD: TypeAdapter[InstanceLoad] = TypeAdapter(InstanceLoad)
HANDOFF_RECORD: TypeAdapter[HandoffRecord] = TypeAdapter(HandoffRecord)
SWEEP_S = 0.25
LINGER_S = 1.0
"""A finished request waits this long for its segments' timings before its record is published."""

_REFUSALS: dict[type[DynaServeError], str] = {
    InvalidRequest: "invalid",
    Overloaded: "overloaded",
    NoInstance: "no_instance",
}

MAX_LOST_INSTANCES = 256
"""Ids of instances that left are kept, as a plan made just before may still name one."""


class GatewayActor(Actor):
    """Invariant: every request submitted ends once: finished, failed or cancelled; what it had
    placed is cancelled unless it finished by itself; and one record of it is published."""

    def __init__(
        self,
        bus: Bus,
        settings: GatewaySettings,
        sink: Sink,
        url: str = "",
        clock: Clock | None = None,
        model: str = "",
    ) -> None:
        super().__init__("gateway", bus, clock)
        self.meter = metrics.RequestMeter(model)
        self._traces = RequestTraces(self.clock)
        self.settings = settings
        self.subjects = Subjects(settings.pool)
        self.registry = PoolRegistry(bus, self.subjects, self._on_registry_change)
        self.loads: dict[str, InstanceLoad] = {}
        self.step_history = StepHistory()
        self.live = LiveView(settings.pool, settings.id, self.registry, self.clock.unix_s())
        self.records = RecordBook(bus, settings, self.live, self.clock)
        self.broadcast = Broadcast(self._snapshot, self.clock)
        self._sink = sink
        self._url = url
        self._in_flight: dict[str, InFlight] = {}
        self._lingering: dict[str, InFlight] = {}
        self._lost_instances: deque[str] = deque(maxlen=MAX_LOST_INSTANCES)
        self._sending: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    async def start(self) -> None:
        self.show_queue("in flight", lambda: len(self._in_flight), self.settings.max_in_flight)
        self._token_lag = self.measure_lag("tokens")
        self._telemetry_lag = self.measure_lag("telemetry")
        await self.listen(self.subjects.gateway(self.settings.id), GATEWAY, self._on_message)
        await self.listen(self.subjects.telemetry(), LOAD, self._on_load)
        await self.listen(self.subjects.handoff_events, HANDOFF_RECORD, self._on_handoff_record)
        self.spawn(self.registry.run(), "registry")
        await self.listen(self.subjects.request_events, REQUEST_RECORD, self._on_request_record)
        self.spawn(self._sweep(), "sweep")
        self.spawn(self.records.keep(), "archive")
        self.spawn(self.broadcast.run(), "live")
        record = GatewayRecord(
            instance_id=self.settings.id, url=self._url, started_s=self.clock.unix_s()
        )
        self.spawn(Heartbeat(self.bus, self.subjects, record).run(), "heartbeat")

    async def drain(self) -> None:
        """Take nothing new, let running requests end, cancel what is left."""
        self._draining = True
        try:
            async with asyncio.timeout(self.settings.drain_timeout_s):
                await self._idle.wait()
        except TimeoutError:
            left = list(self._in_flight.values())
            self.log.warning("cancelling %d requests that did not end in time", len(left))
            for entry in left:
                self._give_up(entry, RequestFailed("the gateway is shutting down"))
        for entry in list(self._lingering.values()):
            self._publish_record(entry)
        if self._sending:
            await asyncio.wait(self._sending, timeout=1.0)

    # -- requests in ------------------------------------------------------------------------------

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def submit(self, ask: Ask) -> None:
        """Start a request. Its tokens, or its one failure, go to the sink."""
        ask = self._traces.begin(ask)
        entry = InFlight(
            ask=ask,
            stream=TokenStream(num_tokens(ask.request.prompt_token_ids)),
            timeline=Timeline(self.clock.monotonic_s()),
        )
        if self._draining:
            self._refuse(entry, NoInstance("the gateway is shutting down"))
        elif len(self._in_flight) >= self.settings.max_in_flight:
            limit = f"{self.settings.max_in_flight} requests are under way at this gateway"
            self._refuse(entry, Overloaded(limit, 1.0))
        else:
            self._in_flight[entry.request_id] = entry
            metrics.in_flight.add(1)
            self._idle.clear()
            self._begin(entry)

    def cancel(self, request_ids: Iterable[str], outcome: Outcome) -> None:
        """End requests from our side; ids that are over already are passed by."""
        for request_id in request_ids:
            entry = self._in_flight.get(request_id)
            if entry is not None:
                self._fence(entry, outcome)
                self._over(entry, outcome)

    # -- placing ----------------------------------------------------------------------------------

    def _begin(self, entry: InFlight) -> None:
        """Start placing what is left of a request, under a new epoch."""
        entry.next_epoch()
        entry.placing_since_s = self.clock.monotonic_s()
        self.spawn_guarded(self._place(entry), f"place {entry.request_id}")

    async def _place(self, entry: InFlight) -> None:
        """Ask until there is a plan or no use in asking; a newer epoch or the end takes over."""
        epoch = entry.epoch
        while entry.epoch == epoch and entry.outcome is None:
            answer = await ask_for_plan(
                self.bus, self.subjects.place, entry, self.settings, self.clock
            )
            if isinstance(answer, Plan):
                self._on_plan(entry, answer)
                return
            if entry.epoch != epoch or entry.outcome is not None:
                return
            if isinstance(answer, recovery.GiveUp):
                self._give_up(entry, answer.error)
                return
            if answer.fence:
                self._fence(entry, "placed anew")
                entry.next_epoch()
                epoch = entry.epoch
            if answer.pause_s:
                await self.clock.sleep(answer.pause_s)

    def _on_plan(self, entry: InFlight, plan: Plan) -> None:
        if plan.epoch != entry.epoch or entry.outcome is not None:
            self._on_late_plan(entry, plan)
            return
        entry.planned(plan, self.clock.monotonic_s())
        self._sink.placed(entry.request_id, plan)
        self._traces.placed(entry)
        for instance_id in {plan.alpha_id, plan.beta_id}.intersection(self._lost_instances):
            if instance_id is not None:
                self._on_instance_lost(entry, instance_id)

    def _on_late_plan(self, entry: InFlight, plan: Plan) -> None:
        """The request ended, or was placed anew, while the scheduler answered."""
        if plan.epoch == entry.epoch:
            entry.note(plan)  # the record is yet to be published
            self._traces.placed(entry)
        if plan.epoch != entry.epoch or not entry.stream.finished:
            self._send_cancel(entry.request_id, plan.epoch, plan, "not wanted any more")

    # -- messages from instances ------------------------------------------------------------------

    async def _on_message(self, message: GatewayMessage, _delivery: Delivery) -> None:
        match message:
            case TokenFrame():
                self._on_frame(message)
            case SegmentFailed():
                self._on_failed(message)
            case SegmentTiming():
                self._on_timing(message)

    def _on_frame(self, frame: TokenFrame) -> None:
        """The hot path: once per engine step of each instance."""
        now_s = self.clock.monotonic_s()
        if frame.sent_s is not None:
            self._token_lag.observe(self.clock.unix_s() - frame.sent_s)
        ready: list[Delivered] = []
        finished: list[tuple[InFlight, Outcome]] = []
        for delta in frame.deltas:
            entry = self._in_flight.get(delta.request_id)
            if entry is None:
                metrics.refused.add(1, {"reason": "unknown"})
                continue
            outputs = self._take(entry, delta, now_s, frame.instance_id)
            if outputs and (reason := outputs[-1].delta.finish_reason) is not None:
                finished.append((entry, reason))
            ready += outputs
        if ready:
            self._sink.deliver(ready)
            self._traces.delivered(ready, self._in_flight, frame)
        for entry, outcome in finished:
            self._over(entry, outcome)

    def _take(
        self, entry: InFlight, delta: TokenDelta, now_s: float, instance_id: str
    ) -> list[Delivered]:
        try:
            return entry.take(delta, now_s)
        except GapTooLarge as error:
            self._recover(entry, Failure("tokens_lost", str(error), instance_id))
            return []

    def _on_failed(self, failed: SegmentFailed) -> None:
        entry = self._in_flight.get(failed.request_id)
        if entry is not None and failed.epoch == entry.epoch:
            self._recover(
                entry, Failure(failed.code, failed.message, failed.instance_id, failed.param)
            )

    def _on_timing(self, timing: SegmentTiming) -> None:
        entry = self._in_flight.get(timing.request_id)
        if entry is not None:
            entry.timings.append(timing)
            if timing.epoch == entry.epoch and timing.role != "alpha":
                entry.ended_since_s = self.clock.monotonic_s()
            return
        entry = self._lingering.get(timing.request_id)
        if entry is not None:
            entry.timings.append(timing)
            if entry.record_is_complete:
                self._publish_record(entry)

    async def _on_load(self, load: InstanceLoad, _delivery: Delivery) -> None:
        self._telemetry_lag.observe(self.clock.unix_s() - load.at_s)
        self.loads[load.instance_id] = load
        self.step_history.add(load)
        self.live.instances.add(load, self.clock.unix_s())

    async def _on_handoff_record(self, record: HandoffRecord, _delivery: Delivery) -> None:
        self.records.add_handoff(record)

    async def _on_request_record(self, record: RequestRecord, _delivery: Delivery) -> None:
        """Of another gateway: our own are known already."""
        if record.gateway_id != self.settings.id:
            self.records.add_request(record)

    # -- failures ---------------------------------------------------------------------------------

    def _recover(self, entry: InFlight, failed: Failure) -> None:
        """Place the rest of a request anew, behind the tokens its client already has."""
        decision = recovery.after_failure(failed, entry.situation(self.clock), self.settings)
        if isinstance(decision, recovery.GiveUp):
            self._give_up(entry, decision.error)
            return
        metrics.recoveries.add(1, {"code": failed.code})
        self.log.warning(
            "%s: placing anew from position %d: %s",
            *(entry.request_id, entry.stream.position, failed),
        )
        entry.failed(failed, self.clock.unix_s())
        self._fence(entry, failed.code)
        suspect_id = recovery.suspect(failed, entry.plan)
        if suspect_id is not None and suspect_id not in entry.avoid:
            entry.avoid.append(suspect_id)
        self._begin(entry)

    def _on_registry_change(self, old: Record | None, new: Record | None) -> None:
        if isinstance(new, InstanceRecord):
            while new.instance_id in self._lost_instances:
                self._lost_instances.remove(new.instance_id)
        if not isinstance(old, InstanceRecord):
            return
        restarted = isinstance(new, InstanceRecord) and new.started_s != old.started_s
        if new is None or restarted:
            self.loads.pop(old.instance_id, None)
            self.step_history.forget(old.instance_id)
            self.live.instances.forget(old.instance_id)
            if new is None:
                self._lost_instances.append(old.instance_id)
            metrics.instances_lost.add(1, {"how": _how_lost(old, restarted)})
            for entry in list(self._in_flight.values()):
                self._on_instance_lost(entry, old.instance_id)

    def _on_instance_lost(self, entry: InFlight, instance_id: str) -> None:
        plan = entry.plan
        if plan is None or entry.outcome is not None:
            return
        stream = entry.stream
        needed = recovery.needed_instances(plan, stream.num_prompt_tokens, stream.position)
        if instance_id in needed:
            failed = Failure("instance_lost", f"{instance_id} left the pool", instance_id)
            self._recover(entry, failed)

    def _give_up(self, entry: InFlight, error: DynaServeError) -> None:
        """The request ends with an error; what may still run of it is cancelled."""
        self._fence(entry, "failed")
        was_refused = isinstance(error, (InvalidRequest, Overloaded, NoInstance))
        if was_refused:
            self._count_refusal(error)
        self._over(entry, "refused" if was_refused else "error", str(error))
        self._sink.fail(entry.request_id, error)

    def _refuse(self, entry: InFlight, error: DynaServeError) -> None:
        entry.finish("refused", self.clock.monotonic_s(), str(error))
        self._count_refusal(error)
        self._publish_record(entry)
        self._sink.fail(entry.request_id, error)

    def _count_refusal(self, error: DynaServeError) -> None:
        wait_s = error.retry_after_s if isinstance(error, Overloaded) else None
        self.meter.refused(_REFUSALS.get(type(error), "other"), wait_s)

    def _fence(self, entry: InFlight, reason: str) -> None:
        """Nothing of the current epoch may run on anywhere."""
        self._send_cancel(entry.request_id, entry.epoch, entry.plan, reason)

    def _send_cancel(self, request_id: str, epoch: int, plan: Plan | None, reason: str) -> None:
        message = SegmentCancel(request_id=request_id, epoch=epoch, reason=reason)
        if plan is None:
            targets = [self.subjects.all_instances]
        else:
            ids = [plan.alpha_id] if plan.beta_id is None else [plan.alpha_id, plan.beta_id]
            targets = [self.subjects.control(each) for each in ids]

        async def send() -> None:
            for target in targets:
                await self.bus.publish(target, message)

        self._send(send(), f"cancel {request_id}")

    def _send(self, work: Coroutine[None, None, None], name: str) -> None:
        task = self.spawn_guarded(work, name)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    # -- the end of a request ---------------------------------------------------------------------

    def _over(self, entry: InFlight, outcome: Outcome, error: str | None = None) -> None:
        entry.finish(outcome, self.clock.monotonic_s(), error)
        metrics.in_flight.add(-1)
        del self._in_flight[entry.request_id]
        if not self._in_flight:
            self._idle.set()
        self._lingering[entry.request_id] = entry
        if entry.record_is_complete:
            self._publish_record(entry)

    def _publish_record(self, entry: InFlight) -> None:
        self._lingering.pop(entry.request_id, None)
        record = entry.record(self.settings.id, self.step_history)
        self.records.add_request(record)
        self.meter.over(record, entry.ask.operation)
        self._traces.over(record, entry.over_s)
        if entry.stream.num_refused:
            metrics.refused.add(entry.stream.num_refused, {"reason": "late or doubled"})
        publish = self.bus.publish(self.subjects.request_events, record)
        self._send(publish, f"record {entry.request_id}")

    async def _sweep(self) -> None:
        while True:
            await self.clock.sleep(SWEEP_S)
            now_s, unix_s = self.clock.monotonic_s(), self.clock.unix_s()
            for entry in list(self._in_flight.values()):
                self._check(entry, now_s, unix_s)
            for entry in list(self._lingering.values()):
                if now_s - entry.over_s >= LINGER_S:
                    self._publish_record(entry)

    def _check(self, entry: InFlight, now_s: float, unix_s: float) -> None:
        if unix_s >= entry.ask.request.deadline_s:
            self._give_up(entry, RequestFailed("deadline exceeded"))
            return
        lost_since_s = entry.gap_since_s or entry.ended_since_s
        if lost_since_s is not None and now_s - lost_since_s >= self.settings.gap_timeout_s:
            self._recover(entry, Failure("tokens_lost", "tokens did not arrive"))

    # -- what others may ask ----------------------------------------------------------------------

    def problem(self) -> str | None:
        """Why nothing can be placed now; None when something can."""
        if self._draining:
            return "the gateway is shutting down"
        if self.registry.silent_s > RECORD_TTL_S:
            return "the message bus is away"
        if not self.registry.schedulers:
            return "no scheduler is in the pool"
        if not any(r.state == "ready" for r in self.registry.instances.values()):
            return "no ready instance is in the pool"
        return None

    def _snapshot(self) -> bytes:
        now_s = self.clock.unix_s()
        snapshot = self.live.snapshot(self.loads, self.problem(), len(self._in_flight), now_s)
        return encode(snapshot)

    async def reset_prefix_caches(self) -> None:
        """Tell every instance to forget its cached prefixes."""
        await self.bus.publish(self.subjects.all_instances, ResetPrefixCache())


def _how_lost(old: InstanceRecord, restarted: bool) -> str:
    if restarted:
        return "restarted"
    return "left" if old.state == "draining" else "lost"
