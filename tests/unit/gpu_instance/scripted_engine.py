"""An engine that does nothing by itself: the test says what it emits, from a thread of its own."""

import threading
from concurrent.futures import Future

from services.gpu_instance.engine.seam import (
    Emission,
    EngineEvents,
    EngineHoldings,
    EngineInfo,
    StepOutputs,
)
from shared.schemas.handoff import HandoffAbort, HandoffStart
from shared.schemas.registry import Geometry
from shared.schemas.segment import Continuation, Segment, SetBatcher, TimedStep

GEOMETRY = Geometry(
    model="m",
    model_hash="h",
    dtype="float32",
    kv_dtype="float32",
    block_size=16,
    num_layers=2,
    block_bytes=1024,
    kv_layout="x",
    tensor_parallel_size=1,
    vllm_version="0",
)


class ScriptedEngine:
    """Writes down what it is asked; ``emit`` and ``fail`` speak from another thread."""

    def __init__(self) -> None:
        self.added: list[Segment] = []
        self.cancelled: list[tuple[str, int, str]] = []
        self.continuations: list[Continuation] = []
        self.commands: list[HandoffStart | HandoffAbort | SetBatcher] = []
        self.stopped = False
        self.events: EngineEvents | None = None

    def start(self, events: EngineEvents) -> EngineInfo:
        self.events = events
        return EngineInfo(GEOMETRY, ["addr"], ["shm"], 10, 100, 4, 64, ["generate"], "none")

    def add(self, segment: Segment) -> None:
        self.added.append(segment)

    def cancel(self, request_id: str, epoch: int, reason: str) -> Future[None]:
        self.cancelled.append((request_id, epoch, reason))
        freed: Future[None] = Future()
        freed.set_result(None)
        return freed

    def continue_with(self, continuation: Continuation) -> None:
        self.continuations.append(continuation)

    def start_handoff(self, start: HandoffStart) -> None:
        self.commands.append(start)

    def abort_handoff(self, abort: HandoffAbort) -> None:
        self.commands.append(abort)

    def set_batcher(self, mode: SetBatcher) -> None:
        self.commands.append(mode)

    def reset_prefix_cache(self) -> Future[bool]:
        future: Future[bool] = Future()
        future.set_result(False)
        return future

    def accounts(self) -> Future[EngineHoldings]:
        future: Future[EngineHoldings] = Future()
        future.set_result(EngineHoldings(10, 9, len(self.added), 0, 0, 7, "slo"))
        return future

    def take_timed_steps(self) -> Future[list[TimedStep]]:
        steps: Future[list[TimedStep]] = Future()
        steps.set_result([])
        return steps

    def stop(self, deadline_s: float) -> None:
        self.stopped = True

    def emit(self, *emissions: Emission) -> None:
        self._speak(lambda events: events.on_step(StepOutputs(list(emissions))))

    def fail(self, error: BaseException) -> None:
        self._speak(lambda events: events.on_failed(error))

    def _speak(self, say) -> None:  # type: ignore[no-untyped-def]
        thread = threading.Thread(target=say, args=(self.events,))
        thread.start()
        thread.join()


def emission(segment: Segment, position: int, *tokens: int, **more: object) -> Emission:
    """Tokens of one step for ``segment``."""
    return Emission(
        segment.request.request_id,
        segment.epoch,
        segment.role,
        position,
        list(tokens),
        **more,  # type: ignore[arg-type]
    )
