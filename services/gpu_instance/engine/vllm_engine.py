"""The engine seam on vLLM: its EngineCore on a thread of this process.

vLLM keeps the engine behind ZMQ sockets; here the bus takes their place. The loop is vLLM's own
busy loop (take commands, step, report), except that it waits for a bell instead of spinning while
nothing can be computed.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor import Executor

from services.gpu_instance.engine.launch import engine_info, vllm_config
from services.gpu_instance.engine.seam import (
    Emission,
    EngineEvents,
    EngineHoldings,
    EngineInfo,
    StepOutputs,
)
from services.gpu_instance.engine.slo_scheduler import SloBatching
from services.gpu_instance.engine.translate import (
    LiveSegment,
    build_request,
    live_segment,
    to_emission,
)
from services.gpu_instance.settings import InstanceSettings
from shared.errors import DynaServeError, EngineFailed
from shared.kv_seam import KvScheduler, LostSegment, engine_bell
from shared.schemas.handoff import HandoffAbort, HandoffStart
from shared.schemas.segment import Continuation, Segment, SetBatcher, TimedStep
from shared.schemas.tokens import FailureCode

log = logging.getLogger("dynaserve.gpu_instance.engine")
T = TypeVar("T")

IDLE_WAIT_S = 0.5
EMPTY_STEP_WAIT_S = 0.005
"""While requests wait for KV: the bell ends it at once where the worker is in this process."""
LOAD_INTERVAL_S = 0.05
MAX_COMMANDS = 65_536


class VllmEngine:
    """Engine thread, its command queue, and the segments it has."""

    def __init__(self, settings: InstanceSettings) -> None:
        self._settings = settings
        self._commands: queue.Queue[Callable[[], None]] = queue.Queue(maxsize=MAX_COMMANDS)
        self._live: dict[str, LiveSegment] = {}
        self._by_key: dict[tuple[str, int], set[str]] = {}
        self._emissions: list[Emission] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._reported_s = 0.0
        self._was_idle = False
        self._num_added = 0

    # -- the seam (any thread) -----------------------------------------------------------------

    def start(self, events: EngineEvents) -> EngineInfo:
        started: Future[EngineInfo] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(events, started), name="engine", daemon=True
        )
        self._thread.start()
        try:
            return started.result()
        except DynaServeError:
            raise
        except Exception as error:
            raise EngineFailed(f"the engine did not start: {error}") from error

    def add(self, segment: Segment) -> None:
        self._send(lambda: self._add(segment))

    def cancel(self, request_id: str, epoch: int, reason: str) -> Future[None]:
        freed: Future[None] = Future()

        def run() -> None:
            self._cancel(request_id, epoch)
            freed.set_result(None)

        self._send(run)
        return freed

    def continue_with(self, continuation: Continuation) -> None:
        self._send(lambda: self._continue(continuation))

    def start_handoff(self, start: HandoffStart) -> None:
        self._send(lambda: self._kv.start(start))

    def abort_handoff(self, abort: HandoffAbort) -> None:
        self._send(lambda: self._kv.abort(abort))

    def set_batcher(self, mode: SetBatcher) -> None:
        self._send(lambda: self._set_batcher(mode))

    def reset_prefix_cache(self) -> Future[bool]:
        return self._ask(self._reset_prefix_cache)

    def accounts(self) -> Future[EngineHoldings]:
        return self._ask(self._holdings)

    def take_timed_steps(self) -> Future[list[TimedStep]]:
        return self._ask(self._scheduler.take_timed_steps)

    def stop(self, deadline_s: float) -> None:
        self._stopping.set()
        engine_bell.set()
        if self._thread is not None:
            self._thread.join(deadline_s)
            if self._thread.is_alive():
                log.warning("the engine's thread did not end within %.1f s", deadline_s)

    # -- the engine's thread -------------------------------------------------------------------

    def _run(self, events: EngineEvents, started: Future[EngineInfo]) -> None:
        try:
            info = self._launch()
        except BaseException as error:
            started.set_exception(error)
            return
        self._events = events
        started.set_result(info)
        try:
            while not self._stopping.is_set():
                self._turn()
        except BaseException as error:
            log.exception("the engine failed")
            events.on_failed(error)
        finally:
            self._shut_down()

    def _shut_down(self) -> None:
        """Workers and connector end; what vLLM would also do (seconds of garbage collection) is
        left to the end of the process, which follows."""
        with contextlib.suppress(Exception):
            self._core.model_executor.shutdown()
            self._core.scheduler.shutdown()

    def _launch(self) -> EngineInfo:
        config = vllm_config(self._settings)
        self._core = EngineCore(config, Executor.get_class(config), log_stats=True)
        self._scheduler: SloBatching = self._core.scheduler
        self._kv: KvScheduler = self._core.scheduler.connector.scheduler_side
        return engine_info(config, self._core.get_supported_tasks(), self._kv)

    def _turn(self) -> None:
        """Take commands, step, report; wait when there is nothing to compute.

        Where steps overlap, ``None`` instead of outputs means that an earlier step is still to be
        looked at.
        """
        engine_bell.clear()
        self._take_commands()
        if not self._has_work():
            self._report()
            engine_bell.wait(IDLE_WAIT_S)
            return
        outputs, executed = self._core.step_fn()
        self._core.post_step(executed)
        self._collect(outputs)
        self._report()
        if not executed and outputs is not None and not _has_tokens(outputs):
            engine_bell.wait(EMPTY_STEP_WAIT_S)

    def _has_work(self) -> bool:
        return bool(self._core.scheduler.has_requests() or self._core.batch_queue)

    def _take_commands(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()
        if self._kv.num_open:
            for lost in self._kv.expire(time.time()):
                self._lose(lost)

    def _collect(self, outputs: dict[int, EngineCoreOutputs] | None) -> None:
        for batch in (outputs or {}).values():
            for output in batch.outputs:
                live = self._live.get(output.request_id)
                if live is None:
                    continue
                emission = to_emission(live, output)
                if emission is not None:
                    self._emissions.append(emission)
                    if emission.is_last:
                        self._drop(live)

    def _report(self) -> None:
        """Emissions at once, handoff news at once, the load at most 20 times a second."""
        for signal in self._kv.take_signals():
            self._events.on_handoff(signal)
        now_s = time.monotonic()
        idle = not self._live
        load = prefixes = None
        if now_s - self._reported_s >= LOAD_INTERVAL_S or idle != self._was_idle:
            load = replace(self._scheduler.load(), num_added=self._num_added)
            prefixes = self._scheduler.take_prefix_changes()
            self._reported_s, self._was_idle = now_s, idle
        if self._emissions or load is not None:
            emissions, self._emissions = self._emissions, []
            self._events.on_step(StepOutputs(emissions, load, prefixes))

    # -- commands ------------------------------------------------------------------------------

    def _send(self, command: Callable[[], None]) -> None:
        try:
            self._commands.put_nowait(command)
        except queue.Full as error:
            raise EngineFailed(f"{MAX_COMMANDS} commands wait for the engine") from error
        engine_bell.set()

    def _ask(self, question: Callable[[], T]) -> Future[T]:
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(question())
            except Exception as error:
                answer.set_exception(error)

        self._send(run)
        return answer

    def _add(self, segment: Segment) -> None:
        self._num_added += 1
        live = live_segment(segment)
        try:
            request = build_request(live, self._core.preprocess_add_request)
            request.slo = segment.request.slo
            self._keep(live)
            self._core.add_request(request)
        except (DynaServeError, ValueError, TypeError, AssertionError) as error:
            self._fail(live, "invalid", str(error) or repr(error))

    def _cancel(self, request_id: str, epoch: int) -> None:
        """All segments of the request up to ``epoch``: out of the engine, nothing more is said."""
        keys = [key for key in self._by_key if key[0] == request_id and key[1] <= epoch]
        engine_ids = [engine_id for key in keys for engine_id in self._by_key[key]]
        for engine_id in engine_ids:
            self._drop(self._live[engine_id])
        if engine_ids:
            self._core.abort_requests(engine_ids)
        self._kv.cancel(request_id, epoch)

    def _continue(self, continuation: Continuation) -> None:
        if continuation.ended:
            engine_ids = self._by_key.get((continuation.request_id, continuation.epoch), set())
            betas = [i for i in engine_ids if self._live[i].segment.role == "beta"]
            for engine_id in betas:
                self._drop(self._live[engine_id])
            self._core.abort_requests(betas)
        else:
            self._kv.continue_with(continuation)

    def _reset_prefix_cache(self) -> bool:
        done = bool(self._core.reset_prefix_cache())
        self._reported_s = 0.0  # schedulers must not go by what is gone: report in this very turn
        return done

    def _set_batcher(self, mode: SetBatcher) -> None:
        self._scheduler.batcher.set_mode(mode.mode)
        self._scheduler.slo_tbt_s = mode.slo_tbt_s

    def _lose(self, lost: LostSegment) -> None:
        live = self._live.get(lost.engine_request_id)
        if live is not None:
            self._fail(live, "handoff_lost", lost.reason)
        self._core.abort_requests([lost.engine_request_id])

    def _fail(self, live: LiveSegment, code: FailureCode, message: str) -> None:
        self._drop(live)
        segment = live.segment
        self._emissions.append(
            Emission(
                request_id=segment.request.request_id,
                epoch=segment.epoch,
                role=segment.role,
                position=live.next_position,
                token_ids=[],
                failure=(code, message),
            )
        )

    def _keep(self, live: LiveSegment) -> None:
        key = (live.segment.request.request_id, live.segment.epoch)
        self._live[live.engine_request_id] = live
        self._by_key.setdefault(key, set()).add(live.engine_request_id)

    def _drop(self, live: LiveSegment) -> None:
        key = (live.segment.request.request_id, live.segment.epoch)
        self._live.pop(live.engine_request_id, None)
        engine_ids = self._by_key.get(key, set())
        engine_ids.discard(live.engine_request_id)
        if not engine_ids:
            self._by_key.pop(key, None)

    def _holdings(self) -> EngineHoldings:
        scheduler = self._scheduler
        load = scheduler.load()
        return EngineHoldings(
            num_blocks=load.num_blocks,
            free_blocks=load.free_blocks,
            num_requests=len(scheduler.requests),
            open_handoffs=self._kv.num_open,
            kv_blocks_orphaned=scheduler.num_orphaned_blocks(),
            staging_bytes_in_use=self._kv.staging_bytes_in_use,
            batcher_mode=scheduler.batcher.mode,
        )


def _has_tokens(outputs: dict[int, EngineCoreOutputs]) -> bool:
    """vLLM's statistics alone are no result of a step."""
    return any(batch.outputs for batch in outputs.values())
