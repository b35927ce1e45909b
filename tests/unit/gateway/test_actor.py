"""The gateway on a bus in memory, against a scripted scheduler and instances."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable

import pytest

from services.gateway.actor import LINGER_S, SWEEP_S, GatewayActor
from services.gateway.in_flight import Ask, Delivered
from services.gateway.pool_view import pool_view, request_view
from services.gateway.settings import GatewaySettings
from shared.bus import Delivery
from shared.bus_memory import MemoryBus
from shared.clock import Clock, ManualClock, SystemClock
from shared.errors import (
    BusError,
    DynaServeError,
    InvalidRequest,
    NoInstance,
    Overloaded,
    RequestFailed,
)
from shared.schemas.message import pack_tokens, unpack_tokens
from shared.schemas.place import Place, PlaceRefused, Plan
from shared.schemas.request import GenerationRequest, Slo
from tests.unit.gateway.fake_pool import (
    FakePool,
    cut_at,
    delta,
    instance_record,
    refusal,
    run_whole,
    settle,
    stay_silent,
    token_at,
)
from tests.unit.shared.explanation.records import record

P = 4
MAX_TOKENS = 6
EXPECTED = [token_at(P + i) for i in range(MAX_TOKENS)]
FOREVER_S = 1e6


class RecordingSink:
    """Remembers what the front half would be told."""

    def __init__(self) -> None:
        self.outputs: defaultdict[str, list[Delivered]] = defaultdict(list)
        self.batches: list[list[str]] = []
        self.failures: dict[str, DynaServeError] = {}
        self.plans: dict[str, Plan] = {}
        self._changed = asyncio.Event()

    def deliver(self, outputs: list[Delivered]) -> None:
        self.batches.append([each.delta.request_id for each in outputs])
        for each in outputs:
            self.outputs[each.delta.request_id].append(each)
        self._changed.set()

    def placed(self, request_id: str, plan: Plan) -> None:
        self.plans[request_id] = plan

    def fail(self, request_id: str, error: DynaServeError) -> None:
        assert request_id not in self.failures
        self.failures[request_id] = error
        self._changed.set()

    def tokens(self, request_id: str = "r") -> list[int]:
        return [t for each in self.outputs[request_id] for t in each.delta.token_ids]

    def finish(self, request_id: str = "r") -> str | None:
        outputs = self.outputs[request_id]
        return outputs[-1].delta.finish_reason if outputs else None

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def finished(self, request_id: str = "r") -> None:
        await self.until(lambda: self.finish(request_id) is not None)

    async def failed(self, request_id: str = "r") -> DynaServeError:
        await self.until(lambda: request_id in self.failures)
        return self.failures[request_id]


class AwayBus(MemoryBus):
    """A bus on which nothing can be asked."""

    async def request(self, *_args: object, **_options: object) -> Delivery:
        raise BusError("gone")


class Gateway:
    """A running gateway, its sink and the pool around it."""

    def __init__(self, clock: Clock, **settings: object) -> None:
        self.bus = MemoryBus()
        self.clock = clock
        self.sink = RecordingSink()
        self.pool = FakePool(self.bus)
        merged = {"pool": "test", "id": "g", "place_timeout_s": 0.05, **settings}
        self.actor = GatewayActor(
            self.bus, GatewaySettings.model_validate(merged), self.sink, clock=clock
        )

    def ask(
        self, request_id: str = "r", forced_cut: int | None = None, deadline_s: float = FOREVER_S
    ) -> None:
        now_s = self.clock.unix_s()
        request = GenerationRequest(
            request_id=request_id,
            prompt_token_ids=pack_tokens(range(P)),
            sampling_params={},
            max_tokens=MAX_TOKENS,
            arrival_time_s=now_s,
            deadline_s=now_s + deadline_s,
            slo=Slo(ttft_s=1.0, tbt_s=1.0),
            trace_headers={"traceparent": "00-1-2-01"},
        )
        self.actor.submit(Ask(request, forced_cut, http_request_id="http"))

    async def step(self, duration_s: float) -> None:
        """Move the clock on in steps of one sweep, letting everybody act after each."""
        assert isinstance(self.clock, ManualClock)
        for _ in range(round(duration_s / SWEEP_S) + 1):
            self.clock.advance(SWEEP_S)
            for _ in range(20):
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def gateway(clock: Clock | None = None, **settings: object) -> AsyncIterator[Gateway]:
    made = Gateway(clock or SystemClock(), **settings)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        async with made.pool:
            tasks.create_task(made.actor.run())
            await made.actor.ready.wait()
            await made.actor.registry.wait_until(lambda r: len(r.instances) == 2)
            await made.actor.registry.wait_until(lambda r: bool(r.schedulers))
            yield made
            made.actor.stop()
    await made.bus.close()


async def test_a_request_is_placed_and_its_tokens_arrive() -> None:
    async with gateway() as g:
        g.ask()
        await g.sink.finished()
        await g.pool.until(lambda: len(g.pool.records) == 1)
        (place,) = g.pool.places
        (record,) = g.pool.records
    assert g.sink.tokens() == EXPECTED
    assert (place.epoch, place.gateway_id, place.forced_cut) == (1, "g", None)
    assert place.request.request_id == "r"
    assert (record.outcome, record.num_output_tokens, record.epochs) == ("length", MAX_TOKENS, 1)
    assert record.http_request_id == "http"
    assert record.plan is not None
    assert record.slo_met
    assert [timing.role for timing in record.segments] == ["whole"]
    assert g.pool.cancels() == []


async def test_the_first_token_alone_says_what_is_known_of_the_prompt() -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        await pool.emit(place, "a", P, [1], num_cached_tokens=3, queued_s=0.5)
        await pool.emit(place, "a", P + 1, [2], num_cached_tokens=2, finish_reason="stop")

    async with gateway() as g:
        g.pool.play = play
        g.ask()
        await g.sink.finished()
    first, second = g.sink.outputs["r"]
    assert first.first is not None
    assert (first.first.num_cached_tokens, first.first.num_prompt_tokens) == (3, P)
    assert first.first.queued_s == 0.5
    assert second.first is None


async def test_two_instances_make_one_stream_even_when_beta_is_heard_first() -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        assert plan.cut is not None
        await pool.emit(place, "b", P + 3, EXPECTED[3:], finish_reason="length")
        await pool.emit(place, "a", P, EXPECTED[:2])
        await pool.emit(place, "a", P + 2, EXPECTED[2:3])
        await pool.end(place, "a", "alpha")
        await pool.end(place, "b", "beta")

    async with gateway() as g:
        g.pool.answer, g.pool.play = cut_at(P + 2), play
        g.ask(forced_cut=P + 2)
        await g.sink.finished()
        await g.pool.until(lambda: len(g.pool.records) == 1)
    assert g.sink.tokens() == EXPECTED
    assert g.pool.places[0].forced_cut == P + 2
    assert {t.role for t in g.pool.records[0].segments} == {"alpha", "beta"}


async def test_what_beta_got_by_the_handoff_does_not_count_as_cached() -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        await settle()  # the plan comes first
        await pool.emit(place, "b", P, EXPECTED, num_cached_tokens=3, finish_reason="length")

    async with gateway() as g:
        g.pool.answer, g.pool.play = cut_at(2), play
        g.ask()
        await g.sink.finished()
    first = g.sink.outputs["r"][0].first
    assert first is not None
    assert first.num_cached_tokens == 1


async def test_one_frame_of_many_requests_is_one_batch() -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        if len(pool.places) == 2:
            deltas = [delta(each, P, [1], finish_reason="stop") for each in pool.places]
            await pool.emit_deltas(place, "a", deltas)

    async with gateway() as g:
        g.pool.play = play
        g.ask("r1")
        g.ask("r2")
        await g.sink.finished("r2")
    assert g.sink.batches == [["r1", "r2"]]


async def test_tokens_of_unknown_requests_and_older_epochs_are_dropped() -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        old = delta(place, P, [9]).model_copy(update={"epoch": 0})
        unknown = delta(place, P, [9]).model_copy(update={"request_id": "x"})
        await pool.emit_deltas(place, "a", [old, unknown])
        await run_whole(pool, place, plan)

    async with gateway() as g:
        g.pool.play = play
        g.ask()
        await g.sink.finished()
    assert g.sink.tokens() == EXPECTED
    assert list(g.sink.outputs) == ["r"]


async def test_a_cancel_reaches_both_segments() -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        await settle()  # the plan comes first
        await pool.emit(place, "a", P, [1])

    async with gateway() as g:
        g.pool.answer, g.pool.play = cut_at(P + 2), play
        g.ask()
        await g.sink.until(lambda: g.sink.tokens() == [1])
        g.actor.cancel(["r", "never heard of"], "abort")
        await g.pool.until(lambda: len(g.pool.cancels()) == 2)
        assert set(g.pool.cancels()) == {("a", "r", 1), ("b", "r", 1)}
        assert g.actor.num_in_flight == 0
        await g.pool.until(lambda: len(g.pool.records) == 1)
    assert g.pool.records[0].outcome == "abort"
    assert not g.pool.records[0].slo_met
    assert g.sink.failures == {}


async def test_a_cancel_before_the_plan_goes_to_everybody_and_then_to_the_plans_instances() -> None:
    async with gateway(place_timeout_s=5.0) as g:
        g.pool.answer, g.pool.play = cut_at(P), stay_silent
        g.pool.gate.clear()
        g.ask()
        await g.pool.until(lambda: len(g.pool.places) == 1)
        g.actor.cancel(["r"], "abort")
        await g.pool.until(lambda: g.pool.cancels() == [("instances", "r", 1)])
        g.pool.gate.set()
        await g.pool.until(lambda: len(g.pool.cancels()) == 3)
        assert set(g.pool.cancels()[1:]) == {("a", "r", 1), ("b", "r", 1)}
        await g.pool.until(lambda: len(g.pool.records) == 1)
    assert g.sink.outputs == {}
    assert g.pool.records[0].plan is not None  # it came late, but before the record


async def test_a_stop_string_ends_a_request_as_stopped() -> None:
    async with gateway() as g:
        g.pool.play = stay_silent
        g.ask()
        await g.pool.until(lambda: len(g.pool.places) == 1)
        g.actor.cancel(["r"], "stop")
        await g.pool.until(lambda: len(g.pool.records) == 1)
    assert g.pool.records[0].outcome == "stop"


# -- recovery -------------------------------------------------------------------------------------


async def test_a_failed_segment_is_placed_anew_behind_the_tokens_the_client_has() -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        await settle()  # the plan comes first
        if place.epoch > 1:
            await run_whole(pool, place, plan)
            return
        await pool.emit(place, "a", P, EXPECTED[:2])
        await pool.fail(place, "a", "engine_failed")
        await pool.emit(place, "b", P + 2, [999])

    async with gateway() as g:
        g.pool.answer, g.pool.play = cut_at(P), play
        g.ask(forced_cut=P)
        await g.sink.finished()
        await g.pool.until(lambda: len(g.pool.records) == 1)
    assert g.sink.tokens() == EXPECTED
    again = g.pool.places[1]
    assert again.epoch == 2
    assert unpack_tokens(again.request.output_token_ids) == EXPECTED[:2]
    assert not again.request.splittable
    assert again.forced_cut is None
    assert again.avoid == ["a"]
    assert {("a", "r", 1), ("b", "r", 1)} <= set(g.pool.cancels())
    told = g.pool.records[0]
    assert told.epochs == 2
    (recovery,) = told.recoveries
    assert (recovery.code, recovery.instance_id, recovery.position) == ("engine_failed", "a", P + 2)
    assert recovery.replaced_s is not None
    runs = [(e.instance_id, e.from_position, e.num_tokens) for e in told.emitters]
    assert runs == [("a", P, 1), ("b", P + 1, 1), ("b", P + 2, 4)]


async def test_records_of_other_gateways_are_known_too() -> None:
    async with gateway() as g:
        theirs = record(request_id="theirs", http_request_id="h2", gateway_id="other")
        await g.bus.publish(g.pool.subjects.request_events, theirs)
        await settle()
        view = await request_view(g.actor, "chatcmpl-h2")
    assert view is not None
    assert view["explanations"][0]["verdict"].startswith("Met both objectives")


async def test_a_gateway_knows_what_was_before_it() -> None:
    async with gateway() as g:
        g.ask()
        await g.sink.finished()
        await g.pool.until(lambda: len(g.pool.records) == 1)
        settings = GatewaySettings.model_validate({"pool": "test", "id": "later"})
        later = GatewayActor(g.bus, settings, RecordingSink(), clock=g.clock)
        running = asyncio.create_task(later.run())
        await later.ready.wait()
        await settle()
        known = await request_view(later, g.pool.records[0].http_request_id)
        later.stop()
        await running
    assert known is not None
    assert known["requests"][0]["request_id"] == "r"


async def test_an_instance_that_leaves_the_pool_is_replaced() -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        if place.epoch == 1:
            await pool.emit(place, "a", P, EXPECTED[:3])
        else:
            await run_whole(pool, place, plan)

    async with gateway() as g:
        g.pool.play = play
        g.ask()
        await g.sink.until(lambda: len(g.sink.tokens()) == 3)
        await g.pool.leave("a")
        await g.sink.finished()
    assert g.sink.tokens() == EXPECTED
    assert [place.epoch for place in g.pool.places] == [1, 2]


async def test_an_instance_that_came_back_restarted_has_lost_its_requests() -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        if place.epoch == 1:
            await settle()
            pool.update("a", instance_record("a", started_s=2.0))
        else:
            await run_whole(pool, place, plan)

    async with gateway() as g:
        g.pool.play = play
        g.ask()
        await g.sink.finished()
    assert g.sink.tokens() == EXPECTED


async def test_an_instance_that_merely_drains_goes_on() -> None:
    async with gateway() as g:
        draining = instance_record("a").model_copy(update={"state": "draining"})
        g.pool.update("a", draining)
        await g.actor.registry.wait_until(lambda r: r.instances["a"].state == "draining")
        g.ask()
        await g.sink.finished()
    assert len(g.pool.places) == 1


async def test_a_plan_that_names_an_instance_which_just_left_is_not_waited_for() -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        if plan.alpha_id == "b":
            await run_whole(pool, place, plan)

    def answer(place: Place) -> Plan:
        plan = cut_at(1)(place)
        return plan.model_copy(
            update={
                "alpha_id": "b" if "a" in place.avoid else "a",
                "beta_id": None,
                "cut": None,
                "handoff_id": None,
            }
        )

    async with gateway() as g:
        await g.pool.leave("a")
        await g.actor.registry.wait_until(lambda r: len(r.instances) == 1)
        g.pool.answer, g.pool.play = answer, play
        g.ask()
        await g.sink.finished()
    assert [place.avoid for place in g.pool.places] == [[], ["a"]]


async def test_recovery_ends_after_the_last_attempt() -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        await pool.fail(place, "a", "engine_failed", "boom")

    async with gateway(max_attempts=3) as g:
        g.pool.play = play
        g.ask()
        error = await g.sink.failed()
        await g.pool.until(lambda: len(g.pool.records) == 1)
    assert isinstance(error, RequestFailed)
    assert "boom" in str(error)
    assert len(g.pool.places) == 3
    assert g.pool.records[0].outcome == "error"


async def test_an_instance_that_finds_the_request_invalid_is_believed() -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        await pool.fail(place, "a", "invalid", "no such thing")

    async with gateway() as g:
        g.pool.play = play
        g.ask()
        error = await g.sink.failed()
    assert isinstance(error, InvalidRequest)
    assert len(g.pool.places) == 1


@pytest.mark.parametrize("missing", ["middle", "end"])
async def test_tokens_that_never_arrive_are_made_anew(missing: str) -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        if place.epoch > 1:
            await run_whole(pool, place, plan)
            return
        await pool.emit(place, "a", P, EXPECTED[:1])
        if missing == "middle":
            await pool.emit(place, "a", P + 3, EXPECTED[3:], finish_reason="length")
        else:
            await pool.end(place, "a", "whole")
        lost.set()

    lost = asyncio.Event()
    async with gateway(ManualClock(), gap_timeout_s=2.0) as g:
        g.pool.play = play
        g.ask()
        await lost.wait()
        await settle()
        await g.step(1.5)
        assert len(g.pool.places) == 1
        await g.step(1.0)
        await g.sink.finished()
        await g.step(LINGER_S)
    assert g.sink.tokens() == EXPECTED


# -- when nothing can be placed -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("invalid", InvalidRequest),
        ("overloaded", Overloaded),
        ("slo", Overloaded),
        ("no_instance", NoInstance),
    ],
)
async def test_a_refused_placement_is_told_as_what_it_is(
    code: str, expected: type[DynaServeError]
) -> None:
    async with gateway() as g:
        g.pool.answer = refusal(code, "not now", param="n", retry_after_s=7.0)
        g.ask()
        error = await g.sink.failed()
        await g.pool.until(lambda: len(g.pool.records) == 1)
    assert isinstance(error, expected)
    assert str(error) == "not now"
    assert getattr(error, "retry_after_s", 7.0) == 7.0
    assert getattr(error, "param", "n") == "n"
    assert g.pool.records[0].outcome == "refused"


async def test_a_scheduler_that_does_not_answer_is_asked_again_under_a_new_epoch() -> None:
    async with gateway(max_attempts=2) as g:
        g.pool.answer = lambda place: None if place.epoch == 1 else cut_at(P)(place)
        g.ask()
        await g.sink.finished()
    assert [place.epoch for place in g.pool.places] == [1, 2]
    assert g.sink.tokens() == EXPECTED
    assert g.pool.cancels()[0] == ("instances", "r", 1)


async def test_schedulers_that_never_answer_are_given_up_on() -> None:
    async with gateway(max_attempts=2) as g:
        g.pool.answer = lambda place: None
        g.ask()
        assert isinstance(await g.sink.failed(), NoInstance)
    assert [place.epoch for place in g.pool.places] == [1, 2]


async def test_without_any_scheduler_the_client_is_told_soon() -> None:
    lonely = Gateway(SystemClock(), place_patience_s=0.0)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(lonely.actor.run())
        await lonely.actor.ready.wait()
        lonely.ask()
        assert isinstance(await lonely.sink.failed(), NoInstance)
        lonely.actor.stop()
    await lonely.bus.close()


async def test_beyond_the_bound_of_requests_in_flight_is_too_much() -> None:
    async with gateway(max_in_flight=1) as g:
        g.pool.play = stay_silent
        g.ask("r1")
        g.ask("r2")
        error = await g.sink.failed("r2")
        assert isinstance(error, Overloaded)
        g.actor.cancel(["r1"], "abort")
        g.pool.play = run_whole
        g.ask("r3")
        await g.sink.finished("r3")


async def test_a_request_ends_at_its_deadline_wherever_it_is() -> None:
    async with gateway(ManualClock()) as g:
        g.pool.play = stay_silent
        g.ask(deadline_s=5.0)
        await g.pool.until(lambda: len(g.pool.places) == 1)
        await settle()
        await g.step(4.0)
        assert g.sink.failures == {}
        await g.step(1.5)
        assert "deadline" in str(await g.sink.failed())
        await g.pool.until(lambda: g.pool.cancels() == [("a", "r", 1)])
        await g.step(LINGER_S)


# -- the record, the view, the end ----------------------------------------------------------------


async def test_a_record_does_not_wait_for_timings_that_never_come() -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        await pool.emit(place, "a", P, EXPECTED, finish_reason="length")

    async with gateway(ManualClock()) as g:
        g.pool.play = play
        g.ask()
        await g.sink.finished()
        await settle()
        assert g.pool.records == []
        await g.step(LINGER_S)
        await g.pool.until(lambda: len(g.pool.records) == 1)
    assert g.pool.records[0].segments == []
    assert g.pool.records[0].plan is not None


async def test_the_pool_is_shown_as_the_registry_and_the_telemetry_have_it() -> None:
    async with gateway() as g:
        await g.pool.report_load("a")
        await settle()
        view = pool_view(g.actor)
    assert {each["instance_id"] for each in view["instances"]} == {"a", "b"}
    assert [each["instance_id"] for each in view["schedulers"]] == ["s"]
    assert view["loads"]["a"]["num_running"] == 3
    assert view["problem"] is None


async def test_what_became_of_a_request_is_shown_by_the_id_the_client_knows() -> None:
    async with gateway() as g:
        assert await request_view(g.actor, "http") is None
        g.ask()
        await g.pool.until(lambda: len(g.pool.records) == 1)
        view = await request_view(g.actor, "http")
    assert view is not None
    assert [each["request_id"] for each in view["requests"]] == ["r"]
    assert view["handoffs"] == []


async def test_an_unreadable_answer_is_an_error_and_not_a_wait() -> None:
    class Nonsense(PlaceRefused):
        kind: str = "nonsense"  # type: ignore[assignment]

    async with gateway() as g:
        g.pool.answer = lambda place: Nonsense(
            request_id="r", epoch=1, code="invalid", message="what"
        )
        g.ask()
        assert "unreadable" in str(await g.sink.failed())


async def test_a_bus_that_is_away_is_told_to_the_client() -> None:
    async with gateway() as g:
        g.actor.bus = AwayBus()
        g.ask()
        assert isinstance(await g.sink.failed(), NoInstance)


async def test_tokens_far_ahead_of_a_gap_are_taken_as_a_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        if place.epoch == 1:
            await pool.emit(place, "a", P + 1, EXPECTED[1:])
        else:
            await run_whole(pool, place, plan)

    monkeypatch.setattr("services.gateway.stream.MAX_BUFFERED_TOKENS", 3)
    async with gateway() as g:
        g.pool.play = play
        g.ask()
        await g.sink.finished()
    assert g.sink.tokens() == EXPECTED
    assert [place.epoch for place in g.pool.places] == [1, 2]


async def test_a_failure_before_the_plan_came_is_recovered_and_the_late_plan_cancelled() -> None:
    async with gateway(place_timeout_s=5.0) as g:
        g.pool.answer, g.pool.play = cut_at(P), stay_silent
        g.pool.gate.clear()
        g.ask()
        await g.pool.until(lambda: len(g.pool.places) == 1)
        first = g.pool.places[0]
        await g.pool.fail(first, "a", "draining")
        await g.pool.until(lambda: len(g.pool.places) == 2)
        g.pool.play = run_whole
        g.pool.gate.set()
        await g.sink.finished()
        await g.pool.until(lambda: {("a", "r", 1), ("b", "r", 1)} <= set(g.pool.cancels()))
    assert g.sink.tokens() == EXPECTED


async def test_health_names_what_is_missing() -> None:
    async with gateway() as g:
        registry = g.actor.registry
        assert g.actor.problem() is None
        for each in ("a", "b"):
            await g.pool.leave(each)
        await registry.wait_until(lambda r: not r.instances)
        assert g.actor.problem() == "no ready instance is in the pool"
        await g.pool.leave("s")
        await registry.wait_until(lambda r: not r.schedulers)
        assert g.actor.problem() == "no scheduler is in the pool"


async def test_a_gateway_that_drains_lets_requests_end_and_takes_no_new_ones() -> None:
    go_on = asyncio.Event()

    async def play(pool: FakePool, place: Place, plan: Plan) -> None:
        await go_on.wait()
        await run_whole(pool, place, plan)

    async with gateway() as g:
        g.pool.play = play
        g.ask("r1")
        await g.pool.until(lambda: len(g.pool.places) == 1)
        g.actor.stop()
        await settle()
        g.ask("r2")
        assert isinstance(await g.sink.failed("r2"), NoInstance)
        assert g.actor.problem() == "the gateway is shutting down"
        go_on.set()
        await g.sink.finished("r1")
    assert g.sink.tokens("r1") == EXPECTED


async def test_a_drain_has_an_end() -> None:
    async with gateway(drain_timeout_s=0.0) as g:
        g.pool.play = stay_silent
        g.ask()
        await g.pool.until(lambda: len(g.pool.places) == 1)
        await settle()
        g.actor.stop()
        assert "shutting down" in str(await g.sink.failed())
        await g.pool.until(lambda: g.pool.cancels() == [("a", "r", 1)])
