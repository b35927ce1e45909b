"""The global scheduler on the bus: a question comes in, segments and a plan go out.

Reading order: ``_on_place`` (into a bounded queue), ``_work`` (one placement after the other),
``_place`` (decide, publish, answer). Replicas share the work as a NATS queue group; what one knows
and the others do not (its own recent placements) is in telemetry within 50 ms.
"""

import asyncio
import time
from functools import partial
from typing import Literal

from pydantic import TypeAdapter

from services.global_sched import metrics
from services.global_sched.length_predictor import LengthPredictor
from services.global_sched.memory import AnswerMemory
from services.global_sched.placement import (
    Placement,
    by_id,
    carry_out,
    decide,
    request_view,
)
from services.global_sched.policy import POLICIES
from services.global_sched.policy.views import NoInstance as PolicyFoundNone
from services.global_sched.policy.views import Role, SplitPolicy
from services.global_sched.pool_view import PoolTracker, burdens
from services.global_sched.settings import SchedulerSettings
from shared import tracing
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
    Plan,
    SetPolicy,
)
from shared.schemas.registry import InstanceRecord, Record, SchedulerRecord
from shared.schemas.segment import ControlReply
from shared.schemas.telemetry import InstanceLoad
from shared.subjects import Subjects

QUEUE_GROUP = "schedulers"
REGISTRY_WAIT_S = 5.0
LOAD: TypeAdapter[InstanceLoad] = TypeAdapter(InstanceLoad)
ROLES: TypeAdapter[dict[str, Role]] = TypeAdapter(dict[str, Role])
REQUEST_RECORD: TypeAdapter[RequestRecord] = TypeAdapter(RequestRecord)


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
        self.lengths = LengthPredictor()
        self.memory = AnswerMemory(settings.max_remembered)
        self.policy_name = settings.policy
        self.policy: SplitPolicy = POLICIES[settings.policy]()
        self._queue: asyncio.Queue[tuple[Place, Delivery]] = asyncio.Queue(settings.max_pending)
        self._started_s = self.clock.unix_s()
        self._placing_s = 0.001  # running mean of one placement, for Retry-After

    async def start(self) -> None:
        self._show_metrics()
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
            await self._refuse(place, delivery, "invalid", str(error), error.param)
            return
        except (NoInstance, PolicyFoundNone) as error:
            message = str(error) or "no instance can take the request"
            await self._refuse(place, delivery, "no_instance", message)
            return
        self._trace(place, placement.plan, time.perf_counter() - started_s)
        self.memory.remember(placement.plan)  # before the first await: asked again, not done again
        try:
            await self._publish(placement, delivery)
        except BusError:
            self.memory.forget(place.request.request_id)
            raise
        self._placing_s += 0.05 * (time.perf_counter() - started_s - self._placing_s)

    def _decide(self, place: Place) -> Placement:
        """The plan and its messages; counted on the instances at once."""
        started_s = time.perf_counter()
        now_s = self.clock.unix_s()
        ready = self.pool.ready(place.avoid)
        request = request_view(place, self.lengths)
        coordinators = self.registry.coordinators
        decision = decide(
            place,
            request,
            self.policy,
            self.pool.view(now_s, ready),
            by_id(ready),
            bool(coordinators),
        )
        decision_s = time.perf_counter() - started_s
        placement = carry_out(
            place,
            request,
            decision,
            scheduler_id=self.id,
            policy=self.policy_name,
            records=by_id(ready),
            coordinators=coordinators,
            now_s=now_s,
            handoff_timeout_s=self.settings.handoff_timeout_s,
            max_candidates=self.settings.max_candidates,
            decision_s=decision_s,
        )
        self._count(placement, now_s)
        return placement

    def _count(self, placement: Placement, now_s: float) -> None:
        """Until telemetry shows them, the new segments are known here alone."""
        plan = placement.plan
        alpha, beta = burdens(placement.request, plan.cut)
        self.pool.on_placed(plan.alpha_id, plan.request_id, alpha, now_s)
        if beta is not None and plan.beta_id is not None:
            self.pool.on_placed(plan.beta_id, plan.request_id, beta, now_s)
        metrics.placed(plan, placement.request.num_prompt_tokens)

    async def _publish(self, placement: Placement, delivery: Delivery) -> None:
        opening, plan = placement.opening, placement.plan
        if opening is not None and plan.coordinator_id is not None:
            await self.bus.publish(self.subjects.handoff(plan.coordinator_id), opening)
        for instance_id, segment in placement.segments:
            await self.bus.publish(self.subjects.segment(instance_id), segment)
        await self.bus.respond(delivery, plan)

    async def _refuse(
        self,
        place: Place,
        delivery: Delivery,
        code: Literal["overloaded", "no_instance", "invalid"],
        message: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        metrics.refused(code, retry_after_s)
        refused = PlaceRefused(
            request_id=place.request.request_id,
            epoch=place.epoch,
            code=code,
            message=message,
            param=param,
            retry_after_s=retry_after_s,
        )
        await self.bus.respond(delivery, refused)

    # -- what the pool says -----------------------------------------------------------------------

    def _on_registry_change(self, old: Record | None, new: Record | None) -> None:
        record = new or old
        if isinstance(record, InstanceRecord):
            kept = new if isinstance(new, InstanceRecord) else None
            self.pool.on_record(record.instance_id, kept)

    async def _on_load(self, load: InstanceLoad, _delivery: Delivery) -> None:
        self._telemetry_lag.observe(self.clock.unix_s() - load.at_s)
        self.pool.on_load(load)

    async def _on_request_record(self, record: RequestRecord, _delivery: Delivery) -> None:
        if record.outcome in ("stop", "length", "repetition") and record.plan is not None:
            self.lengths.observe(record.plan.traffic_class, record.num_output_tokens)

    def _trace(self, place: Place, plan: Plan, took_s: float) -> None:
        if tracing.is_on():
            now_s = self.clock.unix_s()
            headers = place.request.trace_headers
            tracing.record_span(headers, "decide", now_s - took_s, now_s, _as_attributes(plan))

    def _show_metrics(self) -> None:
        metrics.show_zeros()
        self._telemetry_lag = self.measure_lag("telemetry")
        self.show_queue("placements", self._queue.qsize, self.settings.max_pending)
        self.show(metrics.length_error, self._mean_length_error)
        for state in ("ready", "draining"):
            self.show(metrics.instances, partial(self._count_instances, state), {"state": state})

    def _mean_length_error(self) -> float | None:
        errors = list(self.lengths.error.values())
        return sum(errors) / len(errors) if errors else None

    def _count_instances(self, state: str) -> int:
        return sum(record.state == state for record in self.registry.instances.values())

    # -- control ----------------------------------------------------------------------------------

    async def _on_control(self, message: SetPolicy, delivery: Delivery) -> None:
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
        self.policy_name = message.policy
        self.pool.set_roles(roles)
        self.heartbeat.update(self._record())

    def _record(self) -> SchedulerRecord:
        return SchedulerRecord(
            instance_id=self.id, policy=self.policy_name, started_s=self._started_s
        )


def _as_attributes(plan: Plan) -> dict[str, str | int | float | bool]:
    """What a trace tells of a plan."""
    told: dict[str, str | int | float | bool | None] = {
        "dynaserve.policy": plan.policy,
        "dynaserve.reason": plan.reason,
        "dynaserve.alpha": plan.alpha_id,
        "dynaserve.beta": plan.beta_id,
        "dynaserve.cut": plan.cut,
        "dynaserve.control_group": plan.control_group,
        "dynaserve.num_candidates": len(plan.candidates),
    }
    if plan.chosen is not None:
        told["dynaserve.predicted_ttft_s"] = plan.chosen.ttft_s
        told["dynaserve.predicted_tbt_s"] = plan.chosen.tbt_s
    return {name: value for name, value in told.items() if value is not None}


def _last_use_s(place: Place) -> float:
    """When the answer is of no use any more."""
    deadline_s = place.request.deadline_s
    return deadline_s if place.answer_by_s is None else min(deadline_s, place.answer_by_s)
