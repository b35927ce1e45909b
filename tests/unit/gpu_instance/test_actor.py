"""The instance's actor over a scripted engine: what is taken, refused, told, and to whom."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from shared.bus import Delivery
from shared.errors import EngineFailed
from shared.schemas.control import INSTANCE_CONTROL
from shared.schemas.handoff import HandoffAbort
from shared.schemas.message import pack_tokens
from shared.schemas.registry import RECORD, InstanceRecord
from shared.schemas.segment import (
    Continuation,
    ControlReply,
    Drain,
    EngineAccounts,
    InspectEngine,
    ResetPrefixCache,
    SegmentCancel,
    SetBatcher,
)
from shared.schemas.telemetry import InstanceLoad
from tests.unit.gpu_instance.scripted_engine import ScriptedEngine, emission
from tests.unit.gpu_instance.stage import SUBJECTS, Stage, handoff_start, on_stage, segment


@contextlib.asynccontextmanager
async def one_instance(**options: object) -> AsyncIterator[tuple[Stage, ScriptedEngine]]:
    engine = ScriptedEngine()
    async with on_stage(engine=lambda: engine, ids=("a",), options=options) as stage:
        yield stage, engine


async def settled(stage: Stage) -> None:
    """Everything sent to instance ``a`` before has been handled: it answers in order."""
    for subject in (SUBJECTS.control("a"), SUBJECTS.all_instances):
        await stage.bus.request(subject, SetBatcher(mode="slo"), 5.0)
    marker = segment(f"marker{len(stage.failures)}", expires_s=-1.0)
    await stage.send("a", marker)
    await stage.until(lambda: marker.request.request_id in [f.request_id for f in stage.failures])


async def test_deltas_of_one_step_travel_in_one_frame_with_their_positions() -> None:
    async with one_instance() as (stage, engine):
        one, two = segment("one"), segment("two")
        await stage.send("a", one)
        await stage.send("a", two)
        await settled(stage)
        engine.emit(
            emission(one, 40, 7, num_cached_tokens=3, queued_s=0.5),
            emission(two, 41, 8, 9, finish_reason="stop", stop_reason=9),
        )
        await stage.until(lambda: bool(stage.timings))
        (frame,) = stage.frames
        assert [(d.request_id, d.position, d.token_ids) for d in frame.deltas] == [
            ("one", 40, [7]),
            ("two", 41, [8, 9]),
        ]
        assert frame.deltas[0].num_cached_tokens == 3
        assert frame.deltas[1].stop_reason == 9
        assert [timing.request_id for timing in stage.timings] == ["two"]


async def test_the_same_segment_twice_runs_once_and_a_lower_epoch_not_at_all() -> None:
    async with one_instance() as (stage, engine):
        await stage.send("a", segment(epoch=2))
        await stage.send("a", segment(epoch=2))
        await stage.send("a", segment(epoch=1))
        await settled(stage)
        assert [s.epoch for s in engine.added] == [2]


async def test_a_later_epoch_takes_the_place_of_the_running_one() -> None:
    async with one_instance() as (stage, engine):
        first, second = segment(epoch=1), segment(epoch=2)
        await stage.send("a", first)
        await stage.send("a", second)
        await settled(stage)
        assert [c[:2] for c in engine.cancelled] == [("r", 1)]
        engine.emit(emission(first, 40, 1), emission(second, 40, 2, finish_reason="length"))
        await stage.until_ended(2)
        assert [d.epoch for f in stage.frames for d in f.deltas] == [2]


async def test_a_cancel_that_comes_first_fences_the_segment_off() -> None:
    async with one_instance() as (stage, engine):
        await stage.bus.publish(SUBJECTS.all_instances, SegmentCancel(request_id="r", epoch=1))
        await settled(stage)
        await stage.send("a", segment(role="beta", cut=20, epoch=1))
        await settled(stage)
        assert engine.added == [] and engine.cancelled == []
        assert stage.phases("beta") == ["cancelled"]


async def test_segments_past_their_deadline_or_over_the_bound_are_refused() -> None:
    async with one_instance(max_segments=1) as (stage, _engine):
        await stage.send("a", segment("late", expires_s=-1.0))
        await stage.send("a", segment("first"))
        await stage.send("a", segment("second", role="beta", cut=9))
        await stage.until(lambda: len(stage.failures) == 2)
        assert [(f.request_id, f.code) for f in stage.failures] == [
            ("late", "deadline"),
            ("second", "refused"),
        ]
        await stage.until(lambda: stage.phases("beta") == ["failed"])


async def test_a_cut_segment_without_its_handoff_is_invalid() -> None:
    async with one_instance() as (stage, _engine):
        await stage.send("a", segment(role="alpha"))
        await stage.until(lambda: bool(stage.failures))
        assert stage.failures[0].code == "invalid"


async def heard_by_peer(stage: Stage) -> asyncio.Queue[Continuation]:
    queue: asyncio.Queue[Continuation] = asyncio.Queue()

    async def on_control(delivery: Delivery) -> None:
        message = INSTANCE_CONTROL.validate_json(delivery.data)
        assert isinstance(message, Continuation)
        queue.put_nowait(message)

    await stage.bus.subscribe(SUBJECTS.control("b"), on_control)
    return queue


async def test_alpha_at_the_cut_sends_its_tokens_to_beta() -> None:
    async with one_instance() as (stage, engine):
        heard = await heard_by_peer(stage)
        alpha = segment(role="alpha", cut=41)
        await stage.send("a", alpha)
        await settled(stage)
        engine.emit(emission(alpha, 40, 5))
        engine.emit(emission(alpha, 41, 6, reached_cut=True))
        continuation = await asyncio.wait_for(heard.get(), 5)
        assert continuation.token_ids == pack_tokens([5, 6]) and not continuation.ended
        await stage.until_ended(1)
        assert stage.timings[0].role == "alpha"


@pytest.mark.parametrize("how", ["finish", "failure", "cancel", "refusal"])
async def test_alpha_that_ends_before_the_cut_tells_beta_so(how: str) -> None:
    async with one_instance() as (stage, engine):
        heard = await heard_by_peer(stage)
        alpha = segment(role="alpha", cut=50, expires_s=-1.0 if how == "refusal" else 60.0)
        await stage.send("a", alpha)
        if how != "refusal":
            await settled(stage)
        if how == "finish":
            engine.emit(emission(alpha, 40, 5, finish_reason="stop"))
        elif how == "failure":
            engine.emit(emission(alpha, 40, failure=("invalid", "why")))
        elif how == "cancel":
            cancel = SegmentCancel(request_id="r", epoch=1)
            await stage.bus.publish(SUBJECTS.control("a"), cancel)
        continuation = await asyncio.wait_for(heard.get(), 5)
        assert continuation.ended


async def test_beta_without_anything_to_go_on_with_is_dropped_silently() -> None:
    async with one_instance() as (stage, engine):
        await stage.send("a", segment(role="beta", cut=50))
        await settled(stage)
        ended = Continuation(handoff_id="r.1", request_id="r", epoch=1, ended=True)
        await stage.bus.publish(SUBJECTS.control("a"), ended)
        await stage.until_ended(1)
        assert engine.continuations == [ended]
        assert [f for f in stage.failures if f.request_id == "r"] == [] and stage.frames == []


async def test_beta_that_arrives_after_its_end_is_never_started() -> None:
    async with one_instance() as (stage, engine):
        ended = Continuation(handoff_id="r.1", request_id="r", epoch=1, ended=True)
        await stage.bus.publish(SUBJECTS.control("a"), ended)
        await settled(stage)
        await stage.send("a", segment(role="beta", cut=50))
        await settled(stage)
        assert engine.added == []


async def test_control_messages_reach_the_engine_and_are_answered() -> None:
    async with one_instance() as (stage, engine):
        control = SUBJECTS.control("a")
        start = handoff_start(segment(role="alpha", cut=5), "alpha")
        abort = HandoffAbort(handoff_id="r.1", epoch=1, reason="x")
        await stage.bus.publish(control, start)
        await stage.bus.publish(control, abort)
        answer = await stage.bus.request(control, SetBatcher(mode="static:64"), 5.0)
        assert ControlReply.model_validate_json(answer.data).ok
        assert engine.commands == [
            start,
            abort,
            SetBatcher(mode="static:64"),
        ]
        answer = await stage.bus.request(control, ResetPrefixCache(), 5.0)
        assert not ControlReply.model_validate_json(answer.data).ok
        answer = await stage.bus.request(control, InspectEngine(), 5.0)
        accounts = EngineAccounts.model_validate_json(answer.data)
        assert (accounts.free_blocks, accounts.staging_bytes_in_use) == (9, 7)


async def test_an_idle_instance_reports_its_load_and_is_registered_with_its_geometry() -> None:
    async with one_instance() as (stage, _engine):
        loads: asyncio.Queue[InstanceLoad] = asyncio.Queue()

        async def on_load(delivery: Delivery) -> None:
            loads.put_nowait(InstanceLoad.model_validate_json(delivery.data))

        await stage.bus.subscribe(SUBJECTS.telemetry(), on_load)
        await stage.send("a", segment("seen"))
        await settled(stage)
        load = await asyncio.wait_for(loads.get(), 5)
        while not load.admitted_request_ids:
            load = await asyncio.wait_for(loads.get(), 5)
        assert load.admitted_request_ids == ["seen"] and load.free_blocks == 10
        records = await stage.bus.records(SUBJECTS.registry_bucket, 5.0)
        key, data = await anext(records.watch())
        assert key == "instance.a" and data is not None
        record = RECORD.validate_json(data)
        assert isinstance(record, InstanceRecord) and record.geometry.model == "m"


async def test_a_draining_instance_finishes_what_runs_and_takes_nothing_new() -> None:
    async with one_instance(drain_s=5.0) as (stage, engine):
        running = segment("running")
        await stage.send("a", running)
        await settled(stage)
        await stage.bus.request(SUBJECTS.control("a"), Drain(), 5.0)
        await asyncio.wait_for(_refused_as_draining(stage), 5)
        engine.emit(emission(running, 40, 1, finish_reason="stop"))
        await stage.until(lambda: "running" in [t.request_id for t in stage.timings])
    assert engine.stopped
    assert "running" not in [failure.request_id for failure in stage.failures]


async def _refused_as_draining(stage: Stage) -> None:
    number = 0
    while not any(failure.code == "draining" for failure in stage.failures):
        await stage.send("a", segment(f"late{number}", expires_s=5.0))
        number += 1
        await asyncio.sleep(0)


async def test_what_does_not_finish_within_the_drain_bound_fails_as_draining() -> None:
    async with one_instance(drain_s=0.1) as (stage, _engine):
        await stage.send("a", segment("slow"))
        await settled(stage)
    assert ("slow", "draining") in [(f.request_id, f.code) for f in stage.failures]


async def test_when_the_engine_dies_everyone_is_told_and_the_actor_ends_with_the_error() -> None:
    with pytest.raises(BaseExceptionGroup) as raised:
        async with one_instance() as (stage, engine):
            await stage.send("a", segment("one"))
            await stage.send("a", segment("two"))
            await settled(stage)
            engine.fail(RuntimeError("out of memory"))
            await stage.until(lambda: len(stage.timings) == 2)
    assert raised.group_contains(EngineFailed, match="out of memory")
    failed = [f.request_id for f in stage.failures if f.code == "engine_failed"]
    assert failed == ["one", "two"]
    records = await stage.bus.records(SUBJECTS.registry_bucket, 5.0)
    assert await anext(records.watch()) == ("", None)


async def test_segments_nobody_waits_for_any_more_are_ended() -> None:
    async with one_instance() as (stage, engine):
        await stage.send("a", segment("short", expires_s=0.2))
        await stage.until(lambda: bool(stage.failures))
        assert [(f.request_id, f.code) for f in stage.failures] == [("short", "deadline")]
        assert engine.cancelled == [("short", 1, "deadline")]
