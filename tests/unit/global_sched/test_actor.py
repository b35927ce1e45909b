"""The scheduler on a bus: questions answered once, segments published once, refusals told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from pydantic import BaseModel

from services.global_sched.actor import SchedulerActor
from services.global_sched.policy.views import Decision, PoolView, RequestView
from services.global_sched.settings import SchedulerSettings
from shared.bus import Delivery
from shared.bus_memory import MemoryBus
from shared.clock import Clock, ManualClock, SystemClock
from shared.errors import BusTimeout
from shared.registry import PoolRegistry, record_key
from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffOpen
from shared.schemas.place import (
    PLACE_REPLY,
    Place,
    PlaceRefused,
    PlaceReply,
    Plan,
    SetAdmission,
    SetPolicy,
)
from shared.schemas.registry import Record
from shared.schemas.request import Slo
from shared.schemas.segment import ControlReply, Segment
from shared.subjects import Subjects
from tests.unit.global_sched.pool_stage import coordinator, instance, load, question

SUBJECTS = Subjects("default")


@dataclass
class Scene:
    bus: MemoryBus
    actor: SchedulerActor
    sent: list[tuple[str, BaseModel]] = field(default_factory=list)

    async def register(self, *records: Record) -> None:
        bucket = await self.bus.records(SUBJECTS.registry_bucket, 5.0)
        for record in records:
            await bucket.put(record_key(record), record)
        names = {record.instance_id for record in records}
        registry = self.actor.registry
        known = lambda r: names <= set(r.instances) | set(r.coordinators)  # noqa: E731
        await asyncio.wait_for(registry.wait_until(known), 5)

    async def ask(self, place: Place, timeout_s: float = 5.0) -> PlaceReply:
        reply = await self.bus.request(SUBJECTS.place, place, timeout_s)
        return PLACE_REPLY.validate_json(reply.data)

    async def plan(self, place: Place) -> Plan:
        reply = await self.ask(place)
        assert isinstance(reply, Plan), reply
        return reply

    async def refusal(self, place: Place) -> PlaceRefused:
        reply = await self.ask(place)
        assert isinstance(reply, PlaceRefused), reply
        return reply

    async def on_segment(self, delivery: Delivery) -> None:
        instance_id = delivery.subject.split(".")[3]
        self.sent.append((instance_id, Segment.model_validate_json(delivery.data)))

    async def on_handoff(self, delivery: Delivery) -> None:
        coordinator_id = delivery.subject.split(".")[3]
        self.sent.append((coordinator_id, HandoffOpen.model_validate_json(delivery.data)))


@contextlib.asynccontextmanager
async def scheduler(clock: Clock | None = None, **settings: object) -> AsyncIterator[Scene]:
    bus = MemoryBus()
    options = SchedulerSettings.model_validate({"id": "s", "policy": "round_robin", **settings})
    scene = Scene(bus, SchedulerActor(bus, options, clock))
    await bus.subscribe(SUBJECTS.segment("*"), scene.on_segment)
    await bus.subscribe(SUBJECTS.handoff("*"), scene.on_handoff)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(scene.actor.run())
        await scene.actor.ready.wait()
        try:
            yield scene
        finally:
            scene.actor.stop()
    await bus.close()


async def test_a_request_is_placed_and_its_segment_published_before_the_answer() -> None:
    async with scheduler() as scene:
        await scene.register(instance("a"), instance("b"))
        plans = [await scene.plan(question(f"r{i}")) for i in range(4)]
        assert [plan.alpha_id for plan in plans] == ["a", "b", "a", "b"]
        assert [to for to, _ in scene.sent] == ["a", "b", "a", "b"]
        assert plans[0].policy == "round_robin" and plans[0].decision_s > 0.0


async def test_a_cut_request_opens_its_handoff_at_the_coordinator_the_segments_name() -> None:
    async with scheduler() as scene:
        await scene.register(instance("a"), instance("b"), coordinator("c"), coordinator("d"))
        plan = await scene.plan(question(cut=50))
        assert plan.coordinator_id in ("c", "d")
        by_receiver = dict(scene.sent)
        opening = by_receiver[plan.coordinator_id]
        assert isinstance(opening, HandoffOpen) and opening.handoff_id == plan.handoff_id
        for name in "ab":
            segment = by_receiver[name]
            assert isinstance(segment, Segment) and segment.handoff is not None
            assert segment.handoff.coordinator_id == plan.coordinator_id
            assert segment.handoff.deadline_s == opening.deadline_s


async def test_asking_again_gets_the_same_plan_and_places_nothing_again() -> None:
    async with scheduler() as scene:
        await scene.register(instance("a"), instance("b"))
        place = question()
        plans = await asyncio.gather(*(scene.plan(place) for _ in range(5)))
        assert all(plan == plans[0] for plan in plans)
        assert len(scene.sent) == 1


async def test_a_higher_epoch_is_placed_anew_and_a_lower_one_is_never_answered() -> None:
    async with scheduler() as scene:
        await scene.register(instance("a"), instance("b"))
        assert (await scene.plan(question(epoch=1))).alpha_id == "a"
        assert (await scene.plan(question(epoch=2, avoid=("a",)))).alpha_id == "b"
        with pytest.raises(BusTimeout):
            await scene.ask(question(epoch=1), timeout_s=0.1)
        assert len(scene.sent) == 2


async def test_a_question_past_its_deadline_is_dropped() -> None:
    async with scheduler() as scene:
        await scene.register(instance("a"))
        with pytest.raises(BusTimeout):
            await scene.ask(question(expires_s=-1.0), timeout_s=0.1)
        assert scene.sent == []


async def test_a_question_nobody_waits_for_any_more_is_dropped() -> None:
    async with scheduler() as scene:
        await scene.register(instance("a"))
        late = question().model_copy(update={"answer_by_s": SystemClock().unix_s() - 0.1})
        with pytest.raises(BusTimeout):
            await scene.ask(late, timeout_s=0.1)
        assert scene.sent == []


async def test_many_questions_at_once_do_not_keep_the_loop_from_other_work() -> None:
    async with scheduler() as scene:
        await scene.register(instance("a"))
        questions = [asyncio.create_task(scene.ask(question(f"r{i}"))) for i in range(50)]
        done_at_turn: list[int] = []
        while not all(task.done() for task in questions):
            await asyncio.sleep(0)
            done_at_turn.append(sum(task.done() for task in questions))
        assert len(set(done_at_turn)) > 10


async def test_with_nothing_in_the_pool_the_answer_is_no_instance() -> None:
    async with scheduler() as scene:
        assert (await scene.refusal(question())).code == "no_instance"
        await scene.register(instance("a", state="draining"))
        assert (await scene.refusal(question("r2"))).code == "no_instance"


async def test_an_impossible_forced_cut_is_refused_with_its_parameter() -> None:
    async with scheduler() as scene:
        await scene.register(instance("a"), instance("b"), coordinator())
        refusal = await scene.refusal(question(cut=119))
        assert (refusal.code, refusal.param) == ("invalid", "vllm_xargs.dynaserve_cut")
        assert scene.sent == []


async def test_beyond_the_bound_questions_are_refused_with_a_time_to_come_back() -> None:
    async with scheduler(max_pending=1) as scene:
        await scene.register(instance("a"))
        replies = await asyncio.gather(*(scene.ask(question(f"r{i}")) for i in range(30)))
        refused = [reply for reply in replies if isinstance(reply, PlaceRefused)]
        assert {reply.code for reply in refused} <= {"overloaded"}
        assert all((reply.retry_after_s or 0.0) > 0.0 for reply in refused)
        assert len(scene.sent) == 30 - len(refused)


async def test_the_policy_can_be_switched_at_run_time_with_roles_for_the_instances() -> None:
    async with scheduler() as scene:
        await scene.register(instance("a"), instance("b"), coordinator())
        options = {"roles": {"a": "decode", "b": "prefill"}}
        switch = SetPolicy.model_validate({"policy": "disaggregated", "options": options})
        reply = await scene.bus.request(SUBJECTS.all_schedulers, switch, 5.0)
        assert ControlReply.model_validate_json(reply.data).ok
        plan = await scene.plan(question())
        assert (plan.policy, plan.alpha_id, plan.beta_id) == ("disaggregated", "b", "a")


@pytest.mark.parametrize(
    "switch",
    [
        SetPolicy(policy="nonsense"),
        SetPolicy(policy="colocated", options={"x": 1}),
        SetPolicy(policy="colocated", options={"roles": {"a": "boss"}}),
    ],
)
async def test_a_wrong_switch_changes_nothing_and_says_so(switch: SetPolicy) -> None:
    async with scheduler() as scene:
        reply = await scene.bus.request(SUBJECTS.all_schedulers, switch, 5.0)
        assert not ControlReply.model_validate_json(reply.data).ok
        assert scene.actor.policy_name == "round_robin"


async def test_the_record_in_the_registry_names_the_policy() -> None:
    async with scheduler() as scene:
        registry = PoolRegistry(scene.bus, SUBJECTS)
        watch = asyncio.create_task(registry.run())
        await asyncio.wait_for(registry.wait_until(lambda r: "s" in r.schedulers), 5)
        assert registry.schedulers["s"].policy == "round_robin"
        await scene.bus.request(SUBJECTS.all_schedulers, SetPolicy(policy="colocated"), 5.0)
        switched = lambda r: r.schedulers["s"].policy == "colocated"  # noqa: E731
        await asyncio.wait_for(registry.wait_until(switched), 5)
        watch.cancel()


async def test_the_least_loaded_instance_is_chosen_by_telemetry_and_own_placements() -> None:
    async with scheduler(policy="colocated") as scene:
        await scene.register(instance("a"), instance("b"))
        await scene.bus.publish(SUBJECTS.telemetry("a"), load("a", outstanding_prefill_tokens=250))
        while (
            scene.actor.pool.view(0.0, scene.actor.pool.ready())
            .instances[0]
            .outstanding_prefill_tokens
            == 0
        ):
            await asyncio.sleep(0)
        chosen = [(await scene.plan(question(f"r{i}"))).alpha_id for i in range(5)]
        assert chosen[:2] == ["b", "b"] and "a" in chosen


def finished(request_id: str, plan: Plan, **changes: object) -> RequestRecord:
    """What a gateway says of a request that is over."""
    fields: dict[str, object] = {
        "request_id": request_id,
        "gateway_id": "g",
        "arrival_at_s": SystemClock().unix_s(),
        "num_prompt_tokens": 5,
        "num_output_tokens": 7,
        "num_cached_tokens": 0,
        "slo": Slo(ttft_s=1.0, tbt_s=0.1),
        "outcome": "stop",
        "e2e_s": 1.0,
        "slo_met": True,
        "epochs": 1,
        "plan": plan,
    }
    return RequestRecord.model_validate(fields | changes)


async def test_finished_requests_teach_the_length_prediction() -> None:
    async with scheduler() as scene:
        await scene.register(instance("a"))
        plan = await scene.plan(question(max_tokens=1000))
        for number in range(16):
            await scene.bus.publish(SUBJECTS.request_events, finished(f"old{number}", plan))
        while scene.actor.learning.lengths.predict("default", 1000, "m").mean != 7.0:
            await asyncio.sleep(0)
        assert (await scene.plan(question("r2", max_tokens=1000))).predicted_output_tokens == 7.0


async def busy(scene: Scene, tokens: int) -> Plan:
    """Two instances with so many prompt tokens to compute; the plan of one request there."""
    await scene.register(instance("a"), instance("b"))
    for name in "ab":
        report = load(name, outstanding_prefill_tokens=tokens)
        await scene.bus.publish(SUBJECTS.telemetry(name), report)
    pool = scene.actor.pool
    while any(
        view.outstanding_prefill_tokens != tokens for view in pool.view(0.0, pool.ready()).instances
    ):
        await asyncio.sleep(0)
    return await scene.plan(question("first"))


async def teach(scene: Scene, plan: Plan, ratio: float) -> None:
    """Requests with that plan's prediction had their first token at ``ratio`` times it."""
    assert plan.chosen is not None
    for number in range(16):
        record = finished(f"old{number}", plan, ttft_s=ratio * plan.chosen.ttft_s)
        await scene.bus.publish(SUBJECTS.request_events, record)
    while scene.actor.admission.error.optimistic(plan.chosen.ttft_s) is None:
        await asyncio.sleep(0)


async def test_what_no_placement_can_serve_in_time_is_refused_with_the_predicted_wait() -> None:
    async with scheduler(policy="colocated") as scene:
        plan = await busy(scene, 500_000)
        assert plan.chosen is not None and plan.chosen.ttft_s > 2.0
        await teach(scene, plan, 1.0)
        refusal = await scene.refusal(question("late"))
        assert refusal.code == "slo" and refusal.predicted_ttft_s is not None
        assert refusal.predicted_ttft_s == pytest.approx(plan.chosen.ttft_s, rel=0.1)
        assert refusal.retry_after_s == pytest.approx(refusal.predicted_ttft_s - 1.0)
        assert f"{refusal.predicted_ttft_s:.2f} s" in refusal.message
        assert [to for to, _ in scene.sent] == [plan.alpha_id]


async def test_a_model_that_is_wrong_refuses_nobody_once_first_tokens_were_seen() -> None:
    async with scheduler(policy="colocated") as scene:
        plan = await busy(scene, 500_000)
        await teach(scene, plan, 0.01)
        assert (await scene.plan(question("late"))).chosen is not None


async def test_what_was_admitted_once_is_placed_anew_however_late() -> None:
    async with scheduler(policy="colocated") as scene:
        await teach(scene, await busy(scene, 500_000), 1.0)
        assert (await scene.plan(question("first", epoch=2))).epoch == 2


async def test_a_class_may_queue_by_flag_and_by_message_and_its_queue_is_bounded() -> None:
    async with scheduler(policy="colocated", queue_classes="default", max_queued=2) as scene:
        await teach(scene, await busy(scene, 500_000), 1.0)
        await scene.plan(question("waits"))
        switch = SetAdmission(default="refuse")
        reply = await scene.bus.request(SUBJECTS.all_schedulers, switch, 5.0)
        assert ControlReply.model_validate_json(reply.data).ok
        assert (await scene.refusal(question("late"))).code == "slo"
        switch = SetAdmission(default="refuse", classes={"default": "queue"})
        await scene.bus.request(SUBJECTS.all_schedulers, switch, 5.0)
        codes = {(await scene.ask(question(f"q{n}"))).kind for n in range(3)}
        assert codes == {"plan"}
        assert (await scene.refusal(question("too many"))).code == "overloaded"


async def test_classes_whose_cuts_lost_are_left_uncut_by_the_policy() -> None:
    async with scheduler(policy="dynaserve") as scene:
        await scene.register(instance("a"), instance("b"), coordinator())
        uncut = await scene.plan(question("old"))
        control = uncut.model_copy(update={"reason": "control group", "control_group": True})
        cut = uncut.model_copy(
            update={"reason": "cut is cheapest", "cut": 50, "alpha_id": "a", "beta_id": "b"}
        )
        for number in range(30):
            for made, ttft_s in ((control, 0.1), (cut, 3.0)):
                record = finished(f"old{number}", made, ttft_s=ttft_s)
                await scene.bus.publish(SUBJECTS.request_events, record)
        while not scene.actor.learning.guard.unsplit_classes:
            await asyncio.sleep(0)
        seen: list[frozenset[str]] = []
        place = scene.actor.policy.place

        class Spy:
            def place(self, request: RequestView, pool: PoolView) -> Decision:
                seen.append(pool.unsplit_classes)
                return place(request, pool)

        scene.actor.policy = Spy()
        await scene.plan(question("next"))
        assert seen == [frozenset({"default"})]


async def test_a_stopping_scheduler_answers_what_was_asked_before() -> None:
    async with scheduler() as scene:
        await scene.register(instance("a"))
        questions = [asyncio.create_task(scene.ask(question(f"r{i}"))) for i in range(20)]
        await asyncio.sleep(0)
        scene.actor.stop()
        answers = await asyncio.gather(*questions)
        assert all(isinstance(reply, Plan) for reply in answers)


async def hear(scene: Scene, name: str, sequence: int) -> None:
    """Instance ``name`` reports, and the scheduler has noticed."""
    report = load(name, sequence, num_steps=sequence)
    await scene.bus.publish(SUBJECTS.telemetry(name), report)
    while scene.actor.pool.last_load(name) != report:
        await asyncio.sleep(0)


async def test_an_instance_that_has_gone_silent_gets_no_work_while_its_record_lives() -> None:
    clock = ManualClock()
    async with scheduler(clock) as scene:
        await scene.register(instance("a"), instance("b"))
        await hear(scene, "a", 1)
        await hear(scene, "b", 1)
        clock.advance(0.9)
        await hear(scene, "b", 2)
        both = {(await scene.plan(question(f"r{n}"))).alpha_id for n in range(2)}
        clock.advance(0.2)
        left = {(await scene.plan(question(f"s{n}"))).alpha_id for n in range(4)}
        await hear(scene, "a", 2)
        again = {(await scene.plan(question(f"t{n}"))).alpha_id for n in range(2)}
        assert (both, left, again) == ({"a", "b"}, {"b"}, {"a", "b"})


async def test_when_all_are_silent_it_is_the_bus_and_they_are_used_nevertheless() -> None:
    clock = ManualClock()
    async with scheduler(clock) as scene:
        await scene.register(instance("a"), instance("b"))
        clock.advance(30.0)
        assert {(await scene.plan(question(f"r{n}"))).alpha_id for n in range(2)} == {"a", "b"}


async def test_who_announces_to_report_rarely_is_given_its_time() -> None:
    clock = ManualClock()
    async with scheduler(clock) as scene:
        await scene.register(instance("a"), instance("b"))
        rare = load("a", report_every_s=1.0)
        await scene.bus.publish(SUBJECTS.telemetry("a"), rare)
        while scene.actor.pool.last_load("a") is None:
            await asyncio.sleep(0)
        clock.advance(3.5)
        await hear(scene, "b", 1)
        assert {(await scene.plan(question(f"r{n}"))).alpha_id for n in range(2)} == {"a", "b"}
