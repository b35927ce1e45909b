"""A scripted pool: a scheduler and instances that do what a test tells them, over any bus."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine

from pydantic import TypeAdapter

from shared.bus import Bus, Delivery
from shared.registry import Heartbeat
from shared.schemas.events import RequestRecord
from shared.schemas.message import num_tokens
from shared.schemas.place import Place, PlaceRefused, PlaceReply, Plan
from shared.schemas.registry import Geometry, InstanceRecord, SchedulerRecord
from shared.schemas.segment import CONTROL, ControlMessage, SegmentCancel
from shared.schemas.telemetry import InstanceLoad
from shared.schemas.tokens import (
    SegmentFailed,
    SegmentTiming,
    TokenDelta,
    TokenFrame,
    TokenLogprobs,
)
from shared.subjects import Subjects

PLACE: TypeAdapter[Place] = TypeAdapter(Place)
GEOMETRY = Geometry(
    model="demo",
    model_hash="0",
    dtype="float32",
    kv_dtype="float32",
    block_size=32,
    num_layers=2,
    block_bytes=1024,
    kv_layout="LBHNC",
    tensor_parallel_size=1,
    vllm_version="0.32.0",
)


def instance_record(instance_id: str, started_s: float = 1.0) -> InstanceRecord:
    return InstanceRecord(
        instance_id=instance_id,
        host_id="host",
        geometry=GEOMETRY,
        kv_addresses=["127.0.0.1:1"],
        transports=["shm"],
        num_blocks=100,
        max_model_len=512,
        max_num_seqs=16,
        max_num_batched_tokens=128,
        supported_tasks=["generate"],
        device="fake",
        started_s=started_s,
    )


def uncut(place: Place) -> Plan:
    """Everything on instance a."""
    return Plan(
        request_id=place.request.request_id,
        epoch=place.epoch,
        scheduler_id="s",
        policy="scripted",
        alpha_id="a",
        reason="test",
    )


def cut_at(cut: int) -> Callable[[Place], Plan]:
    """Alpha on a, beta on b."""

    def answer(place: Place) -> Plan:
        return uncut(place).model_copy(
            update={
                "beta_id": "b",
                "cut": cut,
                "coordinator_id": "c",
                "handoff_id": f"{place.request.request_id}.{place.epoch}",
            }
        )

    return answer


def refusal(code: str, message: str = "no", **fields: object) -> Callable[[Place], PlaceRefused]:
    def answer(place: Place) -> PlaceRefused:
        return PlaceRefused.model_validate(
            {
                "request_id": place.request.request_id,
                "epoch": place.epoch,
                "code": code,
                "message": message,
                **fields,
            }
        )

    return answer


class FakePool:
    """Answers placements with ``answer`` and plays ``play`` for each; remembers what it heard."""

    def __init__(self, bus: Bus, pool: str = "test") -> None:
        self.bus = bus
        self.subjects = Subjects(pool)
        self.places: list[Place] = []
        self.controls: list[tuple[str, ControlMessage]] = []
        self.records: list[RequestRecord] = []
        self.answer: Callable[[Place], PlaceReply | None] = uncut
        self.play: Callable[[FakePool, Place, Plan], Awaitable[None]] = run_whole
        self.gate = asyncio.Event()
        """Answers wait for it; set unless a test clears it."""
        self.gate.set()
        self._heard = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._heartbeats: dict[str, tuple[Heartbeat, asyncio.Task[None]]] = {}

    async def __aenter__(self) -> "FakePool":
        await self.bus.subscribe(self.subjects.place, self._on_place, "schedulers")
        await self.bus.subscribe(self.subjects.control("*"), self._on_control)
        await self.bus.subscribe(self.subjects.all_instances, self._on_control)
        await self.bus.subscribe(self.subjects.request_events, self._on_record)
        self.join("s", SchedulerRecord(instance_id="s", policy="scripted", started_s=1.0))
        for instance_id in ("a", "b"):
            self.join(instance_id, instance_record(instance_id))
        return self

    async def __aexit__(self, *_error: object) -> None:
        tasks = self._tasks + [task for _, task in self._heartbeats.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def join(self, key: str, record: InstanceRecord | SchedulerRecord) -> None:
        heartbeat = Heartbeat(self.bus, self.subjects, record)
        self._heartbeats[key] = (heartbeat, asyncio.create_task(heartbeat.run()))

    def update(self, key: str, record: InstanceRecord | SchedulerRecord) -> None:
        self._heartbeats[key][0].update(record)

    async def leave(self, key: str) -> None:
        """Take a member out of the registry."""
        _, task = self._heartbeats.pop(key)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Return as soon as what was heard fulfils ``condition``."""
        async with asyncio.timeout(timeout_s), self._heard:
            await self._heard.wait_for(condition)

    def cancels(self) -> list[tuple[str, str, int]]:
        """Last token of the subject, request id and epoch of every cancel heard."""
        return [
            (subject.split(".")[-2], message.request_id, message.epoch)
            for subject, message in self.controls
            if isinstance(message, SegmentCancel)
        ]

    # -- what instances say -----------------------------------------------------------------------

    async def emit(
        self, place: Place, instance_id: str, position: int, tokens: list[int], **fields: object
    ) -> None:
        """One frame with one delta."""
        await self.emit_deltas(place, instance_id, [delta(place, position, tokens, **fields)])

    async def emit_deltas(self, place: Place, instance_id: str, deltas: list[TokenDelta]) -> None:
        frame = TokenFrame(instance_id=instance_id, deltas=deltas)
        await self.bus.publish(self.subjects.gateway(place.gateway_id), frame)

    async def fail(
        self, place: Place, instance_id: str, code: str, message: str = "broken"
    ) -> None:
        failed = SegmentFailed.model_validate(
            {
                "instance_id": instance_id,
                "request_id": place.request.request_id,
                "epoch": place.epoch,
                "code": code,
                "message": message,
            }
        )
        await self.bus.publish(self.subjects.gateway(place.gateway_id), failed)

    async def end(self, place: Place, instance_id: str, role: str) -> None:
        """The timing of a segment that is over."""
        timing = SegmentTiming.model_validate(
            {
                "instance_id": instance_id,
                "request_id": place.request.request_id,
                "epoch": place.epoch,
                "role": role,
                "received_s": time.time(),
                "ended_s": time.time(),
            }
        )
        await self.bus.publish(self.subjects.gateway(place.gateway_id), timing)

    async def report_load(self, instance_id: str) -> None:
        load = InstanceLoad(
            instance_id=instance_id,
            sequence=1,
            at_s=time.time(),
            num_running=3,
            num_waiting=2,
            num_decodes=3,
            context_sum=10,
            outstanding_prefill_tokens=0,
            free_blocks=75,
            num_blocks=100,
            max_num_batched_tokens=128,
        )
        await self.bus.publish(self.subjects.telemetry(instance_id), load)

    # -- what it hears ----------------------------------------------------------------------------

    async def _on_place(self, delivery: Delivery) -> None:
        place = PLACE.validate_json(delivery.data)
        async with self._heard:
            self.places.append(place)
            self._heard.notify_all()
        self.spawn(self._serve(place, delivery))

    async def _serve(self, place: Place, delivery: Delivery) -> None:
        await self.gate.wait()
        reply = self.answer(place)
        if reply is None:
            return
        await self.bus.respond(delivery, reply)
        if isinstance(reply, Plan):
            await self.play(self, place, reply)

    async def _on_control(self, delivery: Delivery) -> None:
        async with self._heard:
            self.controls.append((delivery.subject, CONTROL.validate_json(delivery.data)))
            self._heard.notify_all()

    async def _on_record(self, delivery: Delivery) -> None:
        async with self._heard:
            self.records.append(RequestRecord.model_validate_json(delivery.data))
            self._heard.notify_all()


def delta(place: Place, position: int, tokens: list[int], **fields: object) -> TokenDelta:
    return TokenDelta.model_validate(
        {
            "request_id": place.request.request_id,
            "epoch": place.epoch,
            "position": position,
            "token_ids": tokens,
            **fields,
        }
    )


def token_at(position: int) -> int:
    """The token the scripted engine makes for ``position``: a letter of the demo tokenizer."""
    return 73 + position % 26


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(50):
        await asyncio.sleep(0)


async def run_whole(pool: FakePool, place: Place, plan: Plan) -> None:
    """Emit every token, one a frame, as one engine would; resumes behind what is there."""
    first = num_tokens(place.request.prompt_token_ids)
    start = first + num_tokens(place.request.output_token_ids)
    end = first + place.request.max_tokens
    for position in range(start, end):
        by_beta = plan.cut is not None and position > max(first - 1, plan.cut)
        instance_id = plan.beta_id if by_beta and plan.beta_id else plan.alpha_id
        fields: dict[str, object] = {"logprobs": logprobs_of(place, position)}
        if position == end - 1:
            fields["finish_reason"] = "length"
        await pool.emit(place, instance_id, position, [token_at(position)], **fields)
    await pool.end(place, plan.alpha_id, "whole" if plan.beta_id is None else "alpha")
    if plan.beta_id is not None:
        await pool.end(place, plan.beta_id, "beta")


def logprobs_of(place: Place, position: int) -> TokenLogprobs | None:
    """The sampled token and as many others as were asked for."""
    count = (place.request.sampling_params or {}).get("logprobs")
    if not isinstance(count, int):
        return None
    rivals = [token_at(position + i) for i in range(count + 1)]
    return TokenLogprobs(
        token_ids=[rivals], logprobs=[[-0.1 * (i + 1) for i in range(count + 1)]], ranks=[1]
    )


async def stay_silent(pool: FakePool, place: Place, plan: Plan) -> None:
    """Place it and never say a word."""
