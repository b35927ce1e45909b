"""The simulated engine: the engine seam without a GPU, for the simulator and for scale tests.

Step times come from the latency model, KV is accounted in blocks, and handoffs cost what the link's
speed makes of them. No bytes move: alpha holds its blocks, and beta waits, as long as the tail of
the KV would take once alpha reached the cut (everything before it left while alpha computed).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import chain
from typing import TypeVar

from services.gpu_instance.batcher import Batcher, BatcherSettings
from services.gpu_instance.engine.seam import (
    Emission,
    EngineEvents,
    EngineHoldings,
    EngineInfo,
    EngineLoad,
    StepOutputs,
)
from services.gpu_instance.engine.simulated_handoffs import SimulatedHandoffs
from services.gpu_instance.engine.simulated_request import SimulatedRequest
from services.gpu_instance.engine.simulated_settings import SimulationSettings
from services.gpu_instance.engine.simulated_steps import Step, StepComposer
from services.gpu_instance.prompt_tally import PromptTally
from shared.clock import Clock, SystemClock
from shared.latency_model import LatencyProfile
from shared.schemas.handoff import HandoffAbort, HandoffStart
from shared.schemas.registry import Geometry, LatencyCoefficients
from shared.schemas.segment import Continuation, Segment, SetBatcher, TimedStep

T = TypeVar("T")
LOAD_INTERVAL_S = 0.05
MAX_TIMED_STEPS = 8192


class SimulatedEngine:
    """``Engine`` on the event loop it was made on, without a thread; call it from that loop.

    Invariant: at most one step is under way, and one is whenever something can be computed.
    """

    def __init__(
        self,
        settings: SimulationSettings | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings or SimulationSettings()
        self._loop = loop or asyncio.get_running_loop()
        self._clock = clock or SystemClock()
        self._profile = LatencyProfile.load(self.settings.profile)
        limits = BatcherSettings(max_num_batched_tokens=self.settings.max_num_batched_tokens)
        self.batcher = Batcher(self._profile.model, limits, self.settings.batcher)
        self.steps = StepComposer(self.settings, self._profile.model, self.batcher)
        self.handoffs = SimulatedHandoffs(self)
        self._requests: OrderedDict[tuple[str, int], SimulatedRequest] = OrderedDict()
        self._events: EngineEvents | None = None
        self._step: Step | None = None
        self._kicked = False
        self._stopped = False
        self._num_steps = 0
        self._num_added = 0
        self._last_step: Step | None = None
        self._timed_steps: deque[TimedStep] = deque(maxlen=MAX_TIMED_STEPS)
        self._load_due_s = 0.0
        self._load_timer: asyncio.TimerHandle | None = None

    # -- the seam ---------------------------------------------------------------------------------

    def start(self, events: EngineEvents) -> EngineInfo:
        self._events = events
        settings = self.settings
        return EngineInfo(
            geometry=self._geometry(),
            kv_addresses=["simulated"],
            transports=["shm", "tcp"],
            num_blocks=settings.num_blocks,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            supported_tasks=["generate"],
            device=f"simulated {self._profile.hardware}",
            latency=LatencyCoefficients.of(self._profile.model),
        )

    def add(self, segment: Segment) -> None:
        self._num_added += 1
        request = SimulatedRequest(segment, self.now_s())
        problem = self._problem(request)
        if problem is not None:
            self.emit(_failed(request, problem))
        elif len(request.tokens) >= request.limit:
            self.emit(_nothing_left(request))
        else:
            self._requests[request.key] = request
            if segment.handoff is not None:
                self.handoffs.add(request, segment.handoff)
            else:
                self.enqueue(request)

    def cancel(self, request_id: str, epoch: int, reason: str) -> Future[None]:
        for key in [k for k in self._requests if k[0] == request_id and k[1] <= epoch]:
            self.handoffs.cancelled(self._requests[key], reason)
            self.drop(self._requests[key])
        return _done(None)

    def continue_with(self, continuation: Continuation) -> None:
        self.handoffs.continue_with(continuation)

    def start_handoff(self, start: HandoffStart) -> None:
        self.handoffs.start(start)

    def abort_handoff(self, abort: HandoffAbort) -> None:
        self.handoffs.abort(abort)

    def set_batcher(self, mode: SetBatcher) -> None:
        self.batcher.set_mode(mode.mode)

    def reset_prefix_cache(self) -> Future[bool]:
        self.steps.prefixes.clear()
        self.kick()
        return _done(True)

    def take_timed_steps(self) -> Future[list[TimedStep]]:
        taken = list(self._timed_steps)
        self._timed_steps.clear()
        return _done(taken)

    def accounts(self) -> Future[EngineHoldings]:
        pool = self.steps.pool
        held = sum(request.blocks for request in self._requests.values())
        return _done(
            EngineHoldings(
                num_blocks=pool.total,
                free_blocks=pool.free,
                num_requests=len(self._requests),
                open_handoffs=self.handoffs.num_open,
                kv_blocks_orphaned=pool.total - pool.free - held,
                staging_bytes_in_use=0,
                batcher_mode=self.batcher.mode,
            )
        )

    def stop(self, deadline_s: float) -> None:
        self._stopped = True

    # -- for the handoffs -------------------------------------------------------------------------

    @property
    def events(self) -> EngineEvents:
        if self._events is None:
            raise RuntimeError("the engine was not started")
        return self._events

    def now_s(self) -> float:
        """Simulated seconds."""
        return self._loop.time() * self.settings.speedup

    def unix_s(self) -> float:
        return self._clock.unix_s()

    def later(self, delay_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Call after ``delay_s`` simulated seconds."""
        return self._loop.call_later(max(0.0, delay_s) / self.settings.speedup, call)

    def at_unix(self, when_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Call at a wall time: deadlines are real, whatever the speedup."""
        return self._loop.call_later(max(0.0, when_s - self.unix_s()), call)

    def enqueue(self, request: SimulatedRequest, first: bool = False) -> None:
        """Ready to compute; ``first``: ahead of the others, as its blocks are held already."""
        request.phase = "waiting"
        if first:
            self.steps.waiting.appendleft(request)
        else:
            self.steps.waiting.append(request)
        self.kick()

    def emit(self, emission: Emission) -> None:
        self.events.on_step(self._outputs([emission]))

    def drop(self, request: SimulatedRequest) -> None:
        """Forget the request and free what it holds, whatever it is doing."""
        self._requests.pop(request.key, None)
        self.handoffs.forget(request)
        self.steps.finish(request)
        self.kick()

    def kick(self) -> None:
        """Something changed: hand out freed blocks and see whether a step can start."""
        if not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._run)

    # -- steps ------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._kicked = False
        self._guarded(self._start_step)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run a callback of the loop; an error in it is the engine's end, as it is vLLM's."""
        if self._stopped:
            return
        try:
            work()
        except Exception as error:
            self._stopped = True
            self.events.on_failed(error)

    def _start_step(self) -> None:
        self.handoffs.hold_blocks()
        if self._step is None:
            self._step = self.steps.compose(self.now_s())
            if self._step is not None:
                self.later(self._step.duration_s, lambda: self._guarded(self._end_step))
        if self._step is None or self._load_due_s <= self._loop.time():
            self._report()

    def _end_step(self) -> None:
        step, self._step = self._step, None
        if step is None:
            return
        self._num_steps += 1
        self._last_step = step
        self._timed_steps.append(TimedStep(**step.shape._asdict(), step_s=step.duration_s))
        emissions = self.steps.apply(step, self.now_s())
        self.handoffs.computed(step)
        for emission in emissions:
            if emission.is_last:
                self._settle(self._requests[emission.request_id, emission.epoch], emission)
        if emissions:
            self.events.on_step(self._outputs(emissions))
        self._start_step()

    def _settle(self, request: SimulatedRequest, emission: Emission) -> None:
        if emission.reached_cut:
            self.steps.leave(request)
            self.handoffs.reached_cut(request)
            return
        self.handoffs.ended(request)
        self.drop(request)

    def _problem(self, request: SimulatedRequest) -> str | None:
        num_tokens, bound = len(request.tokens), self.settings.max_model_len
        if num_tokens == 0 or num_tokens > bound:
            return f"{num_tokens} tokens; the model takes 1 to {bound}"
        request.limit = min(request.limit, bound)
        if self.steps.blocks_for(request.limit) > self.settings.num_blocks:
            return f"{request.limit} tokens need more than {self.settings.num_blocks} KV blocks"
        return None

    # -- load -------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Send the load now, or as soon as the interval since the last report is over."""
        outputs = self._outputs([])
        if outputs.load is not None:
            self.events.on_step(outputs)
        elif self._load_timer is None:
            self._load_timer = self._loop.call_at(self._load_due_s, self._report_late)

    def _report_late(self) -> None:
        self._load_timer = None
        if not self._stopped:
            self._report()

    def _outputs(self, emissions: list[Emission]) -> StepOutputs:
        """With the load, and what changed in the prefix cache, when they are due."""
        now_s = self._loop.time()
        if now_s < self._load_due_s:
            return StepOutputs(emissions)
        self._load_due_s = now_s + LOAD_INTERVAL_S
        return StepOutputs(emissions, self._load(), self.steps.prefixes.take())

    def _load(self) -> EngineLoad:
        running, waiting = self.steps.running, self.steps.waiting
        decodes = [request for request in running if request.is_decode]
        prompts = self._tally_prompts()
        last = self._last_step if self._step is None else self._step
        step_s = last.duration_s if last is not None else 0.0
        tightest_s = min((request.slo_tbt_s for request in decodes), default=0.0)
        return EngineLoad(
            num_running=len(running),
            num_waiting=len(waiting),
            num_waiting_for_kv=len(self.handoffs.holding),
            num_decodes=len(decodes),
            context_sum=sum(request.computed for request in decodes),
            outstanding_prefill_tokens=prompts.outstanding,
            late_prefill_tokens=prompts.late,
            inbound_prefill_tokens=prompts.inbound,
            num_pending_decodes=prompts.num_pending,
            pending_decode_context_tokens=prompts.pending_context,
            free_blocks=self.steps.pool.free,
            num_blocks=self.steps.pool.total,
            max_num_batched_tokens=self.settings.max_num_batched_tokens,
            batcher_mode=self.batcher.mode,
            step_margin=self.batcher.margin,
            budget_tokens=last.plan.token_budget if last is not None else 0,
            step_s=step_s,
            predicted_step_s=step_s / self.settings.slowdown,
            slo_headroom=1.0 - step_s / tightest_s if tightest_s else 1.0,
            num_steps=self._num_steps,
            num_generated_tokens=self.steps.num_generated,
            num_preemptions=self.steps.num_preemptions,
            num_added=self._num_added,
        )

    def _tally_prompts(self) -> PromptTally:
        decodes = [request for request in self.steps.running if request.is_decode]
        tally = PromptTally(self._loop.time(), self.steps.prompt_speed(decodes))
        chunks = (request for request in self.steps.running if not request.is_decode)
        for request in chain(chunks, self.steps.waiting):
            will_decode = request.end > request.num_prompt_tokens
            view = request.prompt_view(request.remaining)
            tally.add(view, len(request.tokens), waits_for_kv=False, will_decode=will_decode)
        for handoff in self.handoffs.holding:
            request = handoff.request
            view = request.prompt_view(max(request.num_prompt_tokens - handoff.ref.cut, 0))
            tally.add(view, len(request.tokens), waits_for_kv=True, will_decode=True)
        return tally

    def _geometry(self) -> Geometry:
        settings = self.settings
        return Geometry(
            model=settings.model,
            model_hash="simulated",
            dtype="bfloat16",
            kv_dtype="bfloat16",
            block_size=settings.block_size,
            num_layers=1,
            block_bytes=settings.block_size * settings.kv_token_bytes,
            kv_layout="simulated",
            tensor_parallel_size=1,
            vllm_version="simulated",
        )


def _failed(request: SimulatedRequest, message: str) -> Emission:
    return Emission(
        request_id=request.key[0],
        epoch=request.key[1],
        role=request.segment.role,
        position=len(request.tokens),
        token_ids=[],
        failure=("invalid", message),
    )


def _nothing_left(request: SimulatedRequest) -> Emission:
    return Emission(
        request_id=request.key[0],
        epoch=request.key[1],
        role=request.segment.role,
        position=len(request.tokens),
        token_ids=[],
        finish_reason="length",
    )


def _done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future
