"""The global scheduler on the bus: a question comes in, segments and a plan go out.

Reading order: ``_on_place`` (into a bounded queue), ``_work`` (one placement after the other),
``_place`` (decide, publish, answer). Replicas share the work as a NATS queue group; what one knows
and the others do not (its own recent placements) is in telemetry within 50 ms.
"""

import asyncio
import time

from pydantic import TypeAdapter

from services.global_sched import metrics
from services.global_sched.admission import Admission, AdmissionSettings, Verdict
from services.global_sched.learning import Learning, cached_outcome
from services.global_sched.memory import AnswerMemory
from services.global_sched.meters import SchedulerMeters
from services.global_sched.placement import (
    Placement,
    carry_out,
    decide,
    is_held_to_its_slo,
    request_view,
    traffic_class,
)
from services.global_sched.policy import POLICIES
from services.global_sched.policy.views import Decision, RequestView, Role, SplitPolicy
from services.global_sched.policy.views import NoInstance as PolicyFoundNone
from services.global_sched.pool_view import PoolTracker, burdens
from services.global_sched.prefixes import PrefixKnowledge
from services.global_sched.settings import SchedulerSettings
from services.global_sched.spans import record_decision
from services.global_sched.wire import segment_messages
from shared.actor import Actor
from shared.bus import Bus, Delivery
from shared.clock import Clock
from shared.errors import BusError, InvalidRequest, NoInstance
from shared.registry import Heartbeat, PoolRegistry
from shared.schemas.events import RequestRecord
from shared.schemas.place import (
    PLACE,
    SCHEDULER_CONTROL,
    Place,
    PlaceRefused,
    RefusalCode,
    SchedulerControl,
    SetAdmission,
    SetPolicy,
)
from shared.schemas.prefix import PREFIX_UPDATE, PrefixUpdate
from shared.schemas.registry import InstanceRecord, Record, SchedulerRecord
from shared.schemas.segment import ControlReply, ReadPrefixes
from shared.schemas.telemetry import InstanceLoad
from shared.subjects import Subjects

QUEUE_GROUP = "schedulers"
REGISTRY_WAIT_S = 5.0
LOAD: TypeAdapter[InstanceLoad] = TypeAdapter(InstanceLoad)
ROLES: TypeAdapter[dict[str, Role]] = TypeAdapter(dict[str, Role])
REQUEST_RECORD: TypeAdapter[RequestRecord] = TypeAdapter(RequestRecord)


class NotAdmitted(Exception):
    """Nothing is placed: see the verdict."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.code)
        self.verdict = verdict


class SchedulerActor(Actor):
    """Invariant: one (request, epoch) is published at most once by a replica; a question gets
    its plan, a refusal, or (deadline passed, epoch over, bus away) nothing."""

    def __init__(self, bus: Bus, settings: SchedulerSettings, clock: Clock | None = None) -> None:
        super().__init__("global_sched", bus, clock)
        self.settings = settings
        self.id = settings.id
        self.subjects = Subjects(settings.pool)
        self.registry = PoolRegistry(bus, self.subjects, self._on_registry_change)
        self.pool = PoolTracker()
        self.prefixes = PrefixKnowledge()
        limits = AdmissionSettings(max_queued=settings.max_queued)
        self.admission = Admission(limits, settings.queueing, settings.admission)
        self.learning = Learning(self.admission)
        self.memory = AnswerMemory(settings.max_remembered)
        self.policy_name = settings.policy
        self.policy: SplitPolicy = POLICIES[settings.policy]()
        self._queue: asyncio.Queue[tuple[Place, Delivery]] = asyncio.Queue(settings.max_pending)
        self._started_s = self.clock.unix_s()
        self._placing_s = 0.001  # running mean of one placement, for Retry-After

    async def start(self) -> None:
        self._show_metrics()
        await self.listen(self.subjects.prefixes(), PREFIX_UPDATE, self._on_prefixes)
        self.spawn(self.registry.run(), "registry")
        await self.listen(self.subjects.telemetry(), LOAD, self._on_load)
        await self.listen(self.subjects.request_events, REQUEST_RECORD, self._on_request_record)
        await self.listen(self.subjects.all_schedulers, SCHEDULER_CONTROL, self._on_control)
        async with asyncio.timeout(REGISTRY_WAIT_S):
            await self.registry.wait_until(
                lambda _: True
            )  # know the pool before the first question
        self.spawn(self._work(), "placements")
        await self.listen(self.subjects.place, PLACE, self._on_place, queue=QUEUE_GROUP)
        self.heartbeat = Heartbeat(self.bus, self.subjects, self._record())
        self.spawn(self.heartbeat.run(), "heartbeat")

    async def drain(self) -> None:
        """Leave the queue group, then answer what was already asked."""
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()
        try:
            async with asyncio.timeout(2.0):
                await self._queue.join()
        except TimeoutError:
            self.log.warning("stopped with %d questions unanswered", self._queue.qsize())

    # -- questions --------------------------------------------------------------------------------

    async def _on_place(self, place: Place, delivery: Delivery) -> None:
        try:
            self._queue.put_nowait((place, delivery))
        except asyncio.QueueFull:
            wait_s = self._queue.qsize() * self._placing_s
            message = f"{self._queue.qsize()} placements wait at {self.id}"
            await self._refuse(place, delivery, "overloaded", message, retry_after_s=wait_s)

    async def _work(self) -> None:
        while True:
            place, delivery = await self._queue.get()
            try:
                await self._guarded(self._answer(place, delivery), "place")
            finally:
                self._queue.task_done()
            # Nothing above has to wait when there is much to do: without this the answers, the
            # telemetry and the server's pings would wait until the queue is empty.
            await asyncio.sleep(0)

    async def _answer(self, place: Place, delivery: Delivery) -> None:
        """Answer from memory, drop what is too late, place what is new.

        Placing what nobody waits for any more would make the next one late as well.
        """
        if _last_use_s(place) <= self.clock.unix_s():
            metrics.dropped.add(1, {"reason": "deadline"})
            return
        known = self.memory.recall(place.request.request_id, place.epoch)
        if known == "stale":
            metrics.dropped.add(1, {"reason": "stale"})
        elif known == "new":
            await self._place(place, delivery)
        else:
            await self.bus.respond(delivery, known)

    async def _place(self, place: Place, delivery: Delivery) -> None:
        started_s = time.perf_counter()
        try:
            placement = self._decide(place)
        except InvalidRequest as error:
            await self._refuse(place, delivery, "invalid", str(error), param=error.param)
            return
        except NotAdmitted as late:
            await self._tell_wait(place, delivery, late.verdict)
            return
        except (NoInstance, PolicyFoundNone) as error:
            message = str(error) or "no instance can take the request"
            await self._refuse(place, delivery, "no_instance", message)
            return
        took_s = time.perf_counter() - started_s
        record_decision(place, placement.plan, self.clock.unix_s(), took_s)
        # Before the first await: asked again, not done again.
        answer = self.memory.remember(placement.plan)
        try:
            await self._publish(placement, delivery, answer)
        except BusError:
            self.memory.forget(place.request.request_id)
            raise
        self._placing_s += 0.05 * (time.perf_counter() - started_s - self._placing_s)

    def _decide(self, place: Place) -> Placement:
        """The plan and its messages; counted on the instances at once."""
        started_s = time.perf_counter()
        now_s, heard_s = self.clock.unix_s(), self.clock.monotonic_s()
        ready = self.pool.ready(place.avoid, heard_s)
        records, coordinators = self.pool.records, self.registry.coordinators
        request = self._view(place, ready)
        pool = self.pool.view(now_s, ready, self.learning.guard.unsplit_classes)
        decision = decide(place, request, self.policy, pool, records, bool(coordinators))
        self._admit(place, request, decision, ready, pool.is_overloaded)
        decision_s = time.perf_counter() - started_s
        placement = carry_out(
            place,
            request,
            decision,
            scheduler_id=self.id,
            policy=self.policy_name,
            records=records,
            coordinators=coordinators,
            now_s=now_s,
            handoff_timeout_s=self.settings.handoff_timeout_s,
            max_candidates=self.settings.max_candidates,
            decision_s=decision_s,
        )
        self._count(placement, heard_s)
        return placement

    def _view(self, place: Place, ready: list[InstanceRecord]) -> RequestView:
        return request_view(
            place,
            self.learning.lengths,
            name=self.learning.class_name(traffic_class(place)),
            model=ready[0].geometry.model if ready else "",
            cached_tokens=self.prefixes.cached_tokens(place.request),
        )

    def _admit(
        self,
        place: Place,
        request: RequestView,
        decision: Decision,
        ready: list[InstanceRecord],
        is_overloaded: bool,
    ) -> None:
        """Raises NotAdmitted."""
        if not is_held_to_its_slo(place):
            return
        queued, bound = self.pool.num_queued, self.settings.max_queued * len(ready)
        verdict = self.admission.judge(request, decision, queued, bound, is_overloaded)
        if not verdict.admitted:
            raise NotAdmitted(verdict)
        if verdict.is_probe:
            metrics.probes.add(1)

    def _count(self, placement: Placement, now_s: float) -> None:
        """Until telemetry shows them, the new segments are known here alone."""
        plan = placement.plan
        alpha, beta = burdens(placement.request, plan.cut, plan.predicted_cached_tokens)
        self.pool.on_placed(plan.alpha_id, plan.request_id, alpha, now_s)
        if beta is not None and plan.beta_id is not None:
            self.pool.on_placed(plan.beta_id, plan.request_id, beta, now_s)
        metrics.placed(plan, placement.request.num_prompt_tokens)

    async def _publish(self, placement: Placement, delivery: Delivery, answer: bytes) -> None:
        opening, plan = placement.opening, placement.plan
        if opening is not None and plan.coordinator_id is not None:
            await self.bus.publish(self.subjects.handoff(plan.coordinator_id), opening)
        for instance_id, message in segment_messages(placement.segments, delivery.data):
            await self.bus.publish(self.subjects.segment(instance_id), message)
        await self.bus.respond(delivery, answer)

    async def _tell_wait(self, place: Place, delivery: Delivery, verdict: Verdict) -> None:
        """Nothing was placed, and the client hears how long it would have waited."""
        wait_s = verdict.retry_after_s or 0.0
        message = f"predicted time to first token {verdict.ttft_s:.2f} s"
        if verdict.code == "slo":
            message += f", the objective is {place.request.slo.ttft_s:.2f} s"
        else:
            message += ", and as many requests wait for theirs as may"
        message += f"; try again in {wait_s:.1f} s"
        code = verdict.code or "overloaded"
        await self._refuse(
            place, delivery, code, message, retry_after_s=wait_s, predicted_ttft_s=verdict.ttft_s
        )

    async def _refuse(
        self,
        place: Place,
        delivery: Delivery,
        code: RefusalCode,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        predicted_ttft_s: float | None = None,
    ) -> None:
        metrics.refused(code, retry_after_s)
        refused = PlaceRefused(
            request_id=place.request.request_id,
            epoch=place.epoch,
            code=code,
            message=message,
            param=param,
            retry_after_s=retry_after_s,
            predicted_ttft_s=predicted_ttft_s,
        )
        await self.bus.respond(delivery, refused)

    # -- what the pool says -----------------------------------------------------------------------

    def _on_registry_change(self, old: Record | None, new: Record | None) -> None:
        record = new or old
        if isinstance(record, InstanceRecord):
            now_s, name = self.clock.monotonic_s(), record.instance_id
            before = old if isinstance(old, InstanceRecord) else None
            kept = new if isinstance(new, InstanceRecord) else None
            self.pool.on_record(name, kept, now_s)
            if self.prefixes.on_record(name, before, kept, now_s):
                self._ask_for_prefixes(name)

    async def _on_prefixes(self, update: PrefixUpdate, _delivery: Delivery) -> None:
        if self.prefixes.on_update(update, self.clock.monotonic_s()):
            self._ask_for_prefixes(update.instance_id)

    def _ask_for_prefixes(self, instance_id: str) -> None:
        question = self.bus.publish(self.subjects.control(instance_id), ReadPrefixes())
        self.spawn_guarded(question, f"prefixes of {instance_id}")

    async def _on_load(self, load: InstanceLoad, _delivery: Delivery) -> None:
        self._telemetry_lag.observe(self.clock.unix_s() - load.at_s)
        error_tokens = self.pool.on_load(load, self.clock.monotonic_s())
        if error_tokens is not None:
            metrics.shadow_error.record(error_tokens)

    async def _on_request_record(self, record: RequestRecord, _delivery: Delivery) -> None:
        """Of a request that is over, whoever placed it."""
        plan = record.plan
        if plan is None:
            return
        for instance_id in (plan.alpha_id, plan.beta_id):
            if instance_id is not None:
                self.pool.on_over(instance_id, plan.request_id)
        alpha = self.registry.instances.get(plan.alpha_id)
        model = alpha.geometry.model if alpha is not None else ""
        self.learning.observe(record, model, self.policy_name)
        cached = cached_outcome(record)
        if cached is not None:
            metrics.prefix_error.record(cached[0] - cached[1])
        self.meters.learned(model, self.learning.class_name(plan.traffic_class))

    def _show_metrics(self) -> None:
        self.meters = SchedulerMeters(self)
        self._telemetry_lag = self.measure_lag("telemetry")
        self.show_queue("placements", self._queue.qsize, self.settings.max_pending)

    # -- control ----------------------------------------------------------------------------------

    async def _on_control(self, message: SchedulerControl, delivery: Delivery) -> None:
        match message:
            case SetPolicy():
                await self._on_set_policy(message, delivery)
            case SetAdmission():
                self.admission.set_modes(message.default, message.classes)
                self.log.info("admission is now %s %s", message.default, message.classes or "")
                await self.bus.respond(delivery, ControlReply(ok=True, detail=message.default))

    async def _on_set_policy(self, message: SetPolicy, delivery: Delivery) -> None:
        try:
            self._set_policy(message)
        except (KeyError, TypeError, ValueError) as error:
            detail = f"{message.policy!r} with {message.options}: {error!r}"
            await self.bus.respond(delivery, ControlReply(ok=False, detail=detail))
            return
        self.log.info("policy is now %s %s", message.policy, message.options or "")
        await self.bus.respond(delivery, ControlReply(ok=True, detail=self.policy_name))

    def _set_policy(self, message: SetPolicy) -> None:
        """``options`` may hold ``roles`` (instance -> role); the rest is the policy's own."""
        options = dict(message.options)
        roles = ROLES.validate_python(options.pop("roles", {}))
        self.policy = POLICIES[message.policy](**options)
        if message.policy != self.policy_name:
            self.admission.error.reset()  # it was that of the other policy's predictions
        self.policy_name = message.policy
        self.pool.set_roles(roles)
        self.heartbeat.update(self._record())

    def _record(self) -> SchedulerRecord:
        return SchedulerRecord(
            instance_id=self.id, policy=self.policy_name, started_s=self._started_s
        )


def _last_use_s(place: Place) -> float:
    """When the answer is of no use any more."""
    deadline_s = place.request.deadline_s
    return deadline_s if place.answer_by_s is None else min(deadline_s, place.answer_by_s)
