"""One engine on the bus: segments in, token frames out, and who hears when one ends.

Reading order: ``_on_segment`` (a micro-request arrives), ``_on_step`` (the hot path), ``_end``
(what is said when a segment is over), ``_on_control``, ``drain``.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from pydantic import TypeAdapter

from services.gpu_instance import metrics
from services.gpu_instance.engine.seam import (
    Emission,
    Engine,
    EngineInfo,
    EngineLoad,
    HandoffSignal,
    StepOutputs,
)
from services.gpu_instance.frames import build_frames
from services.gpu_instance.handoff_routes import HandoffRoutes
from services.gpu_instance.ledger import LiveSegment, SegmentLedger
from services.gpu_instance.link_meter import LinkMeter
from services.gpu_instance.load_reports import LoadReporter
from services.gpu_instance.outbox import Outbox
from services.gpu_instance.prefix_log import PrefixLog
from services.gpu_instance.settings import InstanceSettings
from services.gpu_instance.spans import record_segment
from shared import tracing
from shared.actor import Actor
from shared.bus import Bus, Delivery
from shared.clock import Clock
from shared.errors import EngineFailed
from shared.prefixes import chunk_tokens
from shared.registry import Heartbeat
from shared.schemas.control import INSTANCE_CONTROL, InstanceControl
from shared.schemas.handoff import HandoffAbort, HandoffEvent, HandoffPhase, HandoffStart
from shared.schemas.message import pack_tokens
from shared.schemas.prefix import PrefixUpdate
from shared.schemas.registry import InstanceRecord
from shared.schemas.segment import (
    Continuation,
    ControlReply,
    Drain,
    EngineAccounts,
    InspectEngine,
    ReadPrefixes,
    ReadSteps,
    ResetPrefixCache,
    Segment,
    SegmentCancel,
    SetBatcher,
    TimedSteps,
)
from shared.schemas.telemetry import InstanceLoad
from shared.schemas.tokens import FailureCode, SegmentFailed, SegmentTiming
from shared.subjects import Subjects

T = TypeVar("T")
SEGMENT: TypeAdapter[Segment] = TypeAdapter(Segment)

ANSWER_TIMEOUT_S = 5.0
FLUSH_S = 2.0
STOP_ENGINE_S = 5.0
SWEEP_S = 1.0
AUDIT_S = 10.0
SETTLED: frozenset[HandoffPhase] = frozenset({"adopted", "not_needed", "recomputed"})


def idle_load(info: EngineInfo) -> EngineLoad:
    """The load of an engine that has nothing to do."""
    return EngineLoad(
        num_running=0,
        num_waiting=0,
        num_decodes=0,
        context_sum=0,
        outstanding_prefill_tokens=0,
        free_blocks=info.num_blocks,
        num_blocks=info.num_blocks,
        max_num_batched_tokens=info.max_num_batched_tokens,
    )


class EngineToLoop:
    """``EngineEvents`` that hands each call over from the engine's thread to the actor's loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_step: Callable[[StepOutputs], None],
        on_handoff: Callable[[HandoffSignal], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        self._loop = loop
        self._on_step = on_step
        self._on_handoff = on_handoff
        self._on_failed = on_failed

    def on_step(self, outputs: StepOutputs) -> None:
        self._loop.call_soon_threadsafe(self._on_step, outputs)

    def on_handoff(self, event: HandoffSignal) -> None:
        self._loop.call_soon_threadsafe(self._on_handoff, event)

    def on_failed(self, error: BaseException) -> None:
        self._loop.call_soon_threadsafe(self._on_failed, error)


class InstanceActor(Actor):
    """Invariant: every segment taken ends in exactly one of: its last token frame, a
    continuation, a failure, or silence after a cancel; and always in one ``SegmentTiming``."""

    def __init__(
        self, bus: Bus, settings: InstanceSettings, engine: Engine, clock: Clock | None = None
    ) -> None:
        super().__init__("gpu_instance", bus, clock)
        self.settings = settings
        self.id = settings.id
        self.engine = engine
        self.subjects = Subjects(settings.pool)
        self.ledger = SegmentLedger()
        self.routes = HandoffRoutes()
        self.outbox = Outbox(bus)
        self.links = LinkMeter()
        self.loads = LoadReporter(
            self.id,
            self.clock,
            settings.telemetry_interval_s,
            self._send_load,
            self.links.loads,
        )
        self.meter = metrics.LoadMeter(self)
        self.failure: BaseException | None = None
        self._draining = False

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        events = EngineToLoop(loop, self._on_step, self._on_handoff, self._on_failed)
        info = await loop.run_in_executor(None, self.engine.start, events)
        self.loads.update(idle_load(info))
        self.prefixes = PrefixLog(self.id, chunk_tokens(info.geometry.block_size))
        self.spawn(self.outbox.run(), "outbox")
        self.spawn(self.loads.run(), "telemetry")
        self.spawn(self._sweep(), "deadlines")
        self.spawn(self._audit(), "audit")
        self._segment_lag = self.measure_lag("segments")
        self.show_queue("segments", lambda: len(self.ledger.alive), self.settings.max_segments)
        self.show_queue("outbox", lambda: len(self.outbox), self.outbox.max_pending)
        await self.listen(self.subjects.segment(self.id), SEGMENT, self._on_segment)
        await self.listen(self.subjects.control(self.id), INSTANCE_CONTROL, self._on_control)
        await self.listen(self.subjects.all_instances, INSTANCE_CONTROL, self._on_control)
        self.heartbeat = Heartbeat(self.bus, self.subjects, self._record(info))
        self.spawn(self.heartbeat.run(), "heartbeat")

    # -- segments in ------------------------------------------------------------------------------

    async def _on_segment(self, segment: Segment, _delivery: Delivery) -> None:
        verdict = self.ledger.judge(segment)
        if verdict != "new":
            metrics.refused.add(1, {"reason": verdict})
            if verdict == "stale":
                self.routes.add(segment)
                self._tell_coordinator(segment, "cancelled", "its epoch is over")
            return
        refusal = self._refusal(segment)
        if refusal is not None:
            self._refuse(segment, *refusal)
            return
        older = self.ledger.older_than(segment)
        if older is not None:
            self._cancel(*older.key, reason="a later epoch arrived")
        self._take(segment)

    def _refusal(self, segment: Segment) -> tuple[FailureCode, str] | None:
        if (segment.role == "whole") != (segment.handoff is None):
            return "invalid", f"a segment of role {segment.role} with handoff {segment.handoff}"
        if segment.request.deadline_s <= self.clock.unix_s():
            return "deadline", "the request's deadline has passed"
        if self._draining:
            return "draining", f"instance {self.id} is draining"
        if len(self.ledger.alive) >= self.settings.max_segments:
            return "refused", f"instance {self.id} has {self.settings.max_segments} segments"
        return None

    def _refuse(self, segment: Segment, code: FailureCode, message: str) -> None:
        metrics.refused.add(1, {"reason": code})
        self.ledger.refuse(segment)
        self._tell_failure(segment, code, message)
        if segment.handoff is not None:
            self.routes.add(segment)
            self._tell_coordinator(segment, "failed", message)
            self._tell_peer_of_end(segment)

    def _take(self, segment: Segment) -> None:
        live = self.ledger.admit(segment, self.clock.unix_s())
        if segment.sent_s is not None:
            self._segment_lag.observe(live.received_s - segment.sent_s)
        metrics.alive.add(1)
        if segment.handoff is not None:
            self.routes.add(segment)
            self._tell_coordinator(segment, "accepted")
        self.loads.admitted(segment.request.request_id)
        self.engine.add(segment)

    # -- tokens out -------------------------------------------------------------------------------

    def _on_step(self, outputs: StepOutputs) -> None:
        """The hot path: once per engine step."""
        alive = self.ledger.alive
        routed: list[tuple[str, Emission]] = []
        over: list[tuple[LiveSegment, Emission]] = []
        for emission in outputs.emissions:
            live = alive.get((emission.request_id, emission.epoch))
            if live is None:
                continue  # cancelled while the step was under way
            routed.append((live.segment.gateway_id, emission))
            if live.started_s is None:
                live.started_s = self._started_s(live, emission)
            if emission.role == "alpha":
                live.token_ids += emission.token_ids
            if emission.is_last:
                over.append((live, emission))
        for live, emission in over:
            if emission.reached_cut:
                self._tell_continuation(live)  # first of all: beta waits for it
        for gateway_id, frame in build_frames(self.id, routed, self.clock.unix_s()):
            self.outbox.put(self.subjects.gateway(gateway_id), frame)
        for live, emission in over:
            self._finish(live, emission)
        if outputs.prefixes is not None:
            self._tell_prefixes(self.prefixes.apply(outputs.prefixes))
        if outputs.load is not None:
            self.loads.update(outputs.load)
            self.meter.update(outputs.load)

    def _started_s(self, live: LiveSegment, emission: Emission) -> float:
        queued_s = emission.queued_s
        return self.clock.unix_s() if queued_s is None else live.received_s + queued_s

    def _finish(self, live: LiveSegment, emission: Emission) -> None:
        segment = live.segment
        if emission.failure is not None:
            self._tell_failure(segment, *emission.failure)
        if not emission.reached_cut:
            self._tell_peer_of_end(segment)
        self._end(live, emission.finish_reason or ("cut" if emission.reached_cut else "failed"))

    def _end(self, live: LiveSegment, how: str) -> None:
        """Forget a live segment and send its timing."""
        segment = live.segment
        self.ledger.alive.pop(live.key, None)
        metrics.alive.add(-1)
        metrics.segments.add(1, {"role": segment.role, "ended": how})
        timing = SegmentTiming(
            instance_id=self.id,
            request_id=segment.request.request_id,
            epoch=segment.epoch,
            role=segment.role,
            received_s=live.received_s,
            started_s=live.started_s,
            ended_s=self.clock.unix_s(),
            kv_wait_s=live.kv_wait_s,
            kv_bytes=live.kv_bytes,
        )
        self.outbox.put(self.subjects.gateway(segment.gateway_id), timing)
        if tracing.is_on():
            record_segment(live, timing, how)

    def _fail(self, live: LiveSegment, code: FailureCode, message: str) -> None:
        """End a live segment the engine will say nothing more of."""
        self._tell_failure(live.segment, code, message)
        self._tell_peer_of_end(live.segment)
        self._end(live, code)

    # -- who hears what ---------------------------------------------------------------------------

    def _tell_failure(self, segment: Segment, code: FailureCode, message: str) -> None:
        failed = SegmentFailed(
            instance_id=self.id,
            request_id=segment.request.request_id,
            epoch=segment.epoch,
            code=code,
            message=message,
        )
        self.outbox.put(self.subjects.gateway(segment.gateway_id), failed)

    def _tell_continuation(self, live: LiveSegment) -> None:
        self._continue(live.segment, pack_tokens(live.token_ids), ended=False)

    def _tell_peer_of_end(self, segment: Segment) -> None:
        """Alpha ended before the cut: beta has nothing to go on with."""
        if segment.role == "alpha":
            self._continue(segment, b"", ended=True)

    def _continue(self, segment: Segment, token_ids: bytes, ended: bool) -> None:
        handoff = segment.handoff
        if handoff is None:
            return
        continuation = Continuation(
            handoff_id=handoff.handoff_id,
            request_id=segment.request.request_id,
            epoch=segment.epoch,
            token_ids=token_ids,
            ended=ended,
        )
        self.outbox.put(self.subjects.control(handoff.peer_id), continuation)

    def _tell_coordinator(self, segment: Segment, phase: HandoffPhase, detail: str = "") -> None:
        if segment.handoff is None or segment.role == "whole":
            return
        self._on_handoff(
            HandoffSignal(
                handoff_id=segment.handoff.handoff_id,
                request_id=segment.request.request_id,
                epoch=segment.epoch,
                side=segment.role,
                phase=phase,
                detail=detail,
            )
        )

    def _on_handoff(self, signal: HandoffSignal) -> None:
        live = self.ledger.alive.get((signal.request_id, signal.epoch))
        if live is not None and signal.side == "beta":
            live.kv_wait_s = max(live.kv_wait_s, signal.exposed_s)
            live.kv_bytes = max(live.kv_bytes, signal.num_bytes)
            if signal.phase in SETTLED:
                live.settled_s = self.clock.unix_s()
        route = self.routes.ref(signal.handoff_id)
        if route is None:
            return
        self.links.observe(signal, route)
        event = HandoffEvent(
            handoff_id=signal.handoff_id,
            epoch=signal.epoch,
            side=signal.side,
            instance_id=self.id,
            phase=signal.phase,
            at_s=self.clock.unix_s(),
            num_bytes=signal.num_bytes,
            transfer_s=signal.transfer_s,
            exposed_s=signal.exposed_s,
            detail=signal.detail,
        )
        self.outbox.put(self.subjects.handoff(route.coordinator_id), event)

    def _tell_prefixes(self, update: PrefixUpdate) -> None:
        self.outbox.put(self.subjects.prefixes(self.id), update)

    def _send_load(self, load: InstanceLoad) -> None:
        self.outbox.put(self.subjects.telemetry(self.id), load)

    # -- control ----------------------------------------------------------------------------------

    async def _on_control(self, message: InstanceControl, delivery: Delivery) -> None:
        match message:
            case Continuation():
                self._continue_here(message)
            case SegmentCancel():
                self._cancel(message.request_id, message.epoch, message.reason)
            case HandoffStart():
                self.engine.start_handoff(message)
            case HandoffAbort():
                self.engine.abort_handoff(message)
            case SetBatcher():
                self.engine.set_batcher(message)
                await self._reply(delivery, message.mode)
            case ResetPrefixCache():
                self.spawn_guarded(self._reset_prefix_cache(delivery), "reset")
            case InspectEngine():
                self.spawn_guarded(self._inspect(delivery), "inspect")
            case ReadPrefixes():
                self._tell_prefixes(self.prefixes.whole())
            case ReadSteps():
                self.spawn_guarded(self._read_steps(delivery), "steps")
            case Drain():
                await self._reply(delivery, f"{len(self.ledger.alive)} segments to finish")
                self.stop()

    def _continue_here(self, message: Continuation) -> None:
        if not message.ended:
            self.engine.continue_with(message)
            return
        # Fenced too: the segment that has nothing to go on with may still be on its way.
        known = self.ledger.was_seen(message.request_id, message.epoch)
        ended = self.ledger.cancel(message.request_id, message.epoch)
        if known:
            self.engine.continue_with(message)
        for live in ended:
            self._tell_coordinator(live.segment, "cancelled", "alpha ended before the cut")
            self._end(live, "dropped")

    def _cancel(self, request_id: str, epoch: int, reason: str) -> None:
        known = self.ledger.was_seen(request_id, epoch)
        ended = self.ledger.cancel(request_id, epoch)
        if known:
            # Also when it is not alive: alpha may hold blocks for a handoff under way.
            metrics.time_cancel(lambda: self.engine.cancel(request_id, epoch, reason))
        for live in ended:
            self._tell_peer_of_end(live.segment)
            self._tell_coordinator(live.segment, "cancelled", reason)
            self._end(live, "cancelled")

    async def _reset_prefix_cache(self, delivery: Delivery) -> None:
        done = await self._answer(self.engine.reset_prefix_cache())
        await self._reply(delivery, "forgotten" if done else "blocks are in use", ok=done)

    async def _inspect(self, delivery: Delivery) -> None:
        holdings = await self._answer(self.engine.accounts())
        accounts = EngineAccounts(
            instance_id=self.id,
            num_blocks=holdings.num_blocks,
            free_blocks=holdings.free_blocks,
            num_requests=holdings.num_requests,
            open_handoffs=holdings.open_handoffs,
            kv_blocks_orphaned=holdings.kv_blocks_orphaned,
            staging_bytes_in_use=holdings.staging_bytes_in_use,
            tasks=self.num_tasks,
            batcher_mode=holdings.batcher_mode,
        )
        await self.bus.respond(delivery, accounts)

    async def _read_steps(self, delivery: Delivery) -> None:
        steps = await self._answer(self.engine.take_timed_steps())
        await self.bus.respond(delivery, TimedSteps(instance_id=self.id, steps=steps))

    async def _answer(self, future: Future[T]) -> T:
        return await asyncio.wait_for(asyncio.wrap_future(future), ANSWER_TIMEOUT_S)

    async def _reply(self, delivery: Delivery, detail: str, ok: bool = True) -> None:
        await self.bus.respond(delivery, ControlReply(ok=ok, detail=detail))

    # -- the end ----------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """A backstop for cancels that never came: end what nobody waits for any more."""
        while True:
            await self.clock.sleep(SWEEP_S)
            for live in self.ledger.overdue(self.clock.unix_s()):
                self.engine.cancel(*live.key, "deadline")
                self._fail(live, "deadline", "the request's deadline has passed")

    async def _audit(self) -> None:
        """Look for orphaned blocks now and then, when nothing runs that the look could delay."""
        while True:
            await self.clock.sleep(AUDIT_S)
            if not self.ledger.alive:
                await self._guarded(self._look_for_orphans(), "audit")

    async def _look_for_orphans(self) -> None:
        holdings = await self._answer(self.engine.accounts())
        self.meter.blocks_orphaned = holdings.kv_blocks_orphaned

    def _on_failed(self, error: BaseException) -> None:
        """The engine is dead: whoever waits is told, and the actor ends with the error."""
        if self.failure is not None:
            return
        self.log.error("the engine failed: %r", error)
        self.failure = error
        for live in list(self.ledger.alive.values()):
            self._fail(live, "engine_failed", f"the engine of {self.id} failed: {error!r}")
        self.stop()

    async def drain(self) -> None:
        self._draining = True
        if self.failure is None:
            record = self.heartbeat.record.model_copy(update={"state": "draining"})
            self.heartbeat.update(record)
            await self._finish_running()
        for live in list(self.ledger.alive.values()):
            self._fail(live, "draining", f"instance {self.id} stops")
        await asyncio.get_running_loop().run_in_executor(None, self.engine.stop, STOP_ENGINE_S)
        try:
            await asyncio.wait_for(self.outbox.flushed(), FLUSH_S)
        except TimeoutError:
            self.log.warning("stopped before everything was published")

    async def _finish_running(self) -> None:
        """Wait, at most ``drain_s``, until no segment runs and no peer needs our blocks."""
        try:
            async with asyncio.timeout(self.settings.drain_s):
                while self.ledger.alive or await self._has_open_handoffs():
                    await self.clock.sleep(0.05)
        except TimeoutError:
            self.log.warning("%d segments did not finish in time", len(self.ledger.alive))

    async def _has_open_handoffs(self) -> bool:
        return (await self._answer(self.engine.accounts())).open_handoffs > 0

    async def run(self) -> None:
        """As every actor's; raises EngineFailed when the engine is what ended it."""
        await super().run()
        if self.failure is not None:
            raise EngineFailed(str(self.failure)) from self.failure

    def _record(self, info: EngineInfo) -> InstanceRecord:
        return InstanceRecord(
            instance_id=self.id,
            host_id=self.settings.host_id,
            role=self.settings.role,
            geometry=info.geometry,
            kv_addresses=info.kv_addresses,
            transports=info.transports,
            num_blocks=info.num_blocks,
            max_model_len=info.max_model_len,
            max_num_seqs=info.max_num_seqs,
            max_num_batched_tokens=info.max_num_batched_tokens,
            supported_tasks=info.supported_tasks,
            device=info.device,
            engine=self.settings.engine,
            started_s=self.clock.unix_s(),
            latency=info.latency,
        )
