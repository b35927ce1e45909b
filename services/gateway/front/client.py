"""The engine client that AsyncLLM talks to: a pool of instances instead of one engine process."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.tasks import SupportedTask
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.metrics.stats import SchedulerStats

from services.gateway.front.translate import Translator, to_output
from services.gateway.http_context import HttpContext, current
from services.gateway.in_flight import Ask, Delivered, Outcome
from shared.errors import DynaServeError, InvalidRequest, NoInstance, Overloaded
from shared.schemas.place import Plan


class Pool(Protocol):
    """What the client needs of the gateway's actor."""

    def submit(self, ask: Ask) -> None: ...
    def cancel(self, request_ids: list[str], outcome: Outcome) -> None: ...
    async def reset_prefix_caches(self) -> None: ...


@dataclass
class Resources:
    """Looked at by AsyncLLM. A pool comes and goes; there is no engine here that could die."""

    engine_dead: bool = False


class PoolEngineClient(EngineCoreClient):
    """Both ends of a request: AsyncLLM's calls go to the pool, the pool's results to AsyncLLM.

    Never raises from ``add_request_async``: whatever goes wrong reaches the caller through
    ``on_failure``, so that there is one way in which a request fails.
    """

    def __init__(self, translator: Translator, default_context: Callable[[], HttpContext]) -> None:
        self.resources = Resources()
        self.engine_ranks_managed = [0]
        self.supported_tasks: tuple[SupportedTask, ...] = ("generate",)
        self.on_failure: Callable[[str, Exception], None] = lambda request_id, error: None
        self._translator = translator
        self._default_context = default_context
        self._pool: Pool | None = None
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._contexts: dict[str, HttpContext] = {}

    def connect(self, pool: Pool) -> None:
        """Where requests go; to be called before the first."""
        self._pool = pool

    # -- calls of AsyncLLM ------------------------------------------------------------------------

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        context = current.get() or self._default_context()
        try:
            ask = self._translator.to_ask(request, context)
        except InvalidRequest as error:
            self.on_failure(request.request_id, http_error(error))
            return
        self._contexts[request.request_id] = context
        self.pool.submit(ask)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Called by the output processor when a stop string was found."""
        self.cancel(request_ids, "stop")

    def cancel(self, request_ids: list[str], outcome: Outcome) -> None:
        for request_id in request_ids:
            self._contexts.pop(request_id, None)
        self.pool.cancel(request_ids, outcome)

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self._outputs.get()

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        return self.supported_tasks

    async def reset_mm_cache_async(self) -> None:
        """Multimodal input is refused, so nothing is cached."""

    async def reset_prefix_cache_async(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        await self.pool.reset_prefix_caches()
        return True

    def dp_engines_running(self) -> bool:
        return bool(self._contexts)

    def shutdown(self, timeout: float | None = None) -> None:
        """Nothing was started."""

    @property
    def pool(self) -> Pool:
        if self._pool is None:
            raise RuntimeError("the engine client is not connected to a pool yet")
        return self._pool

    # -- results from the pool (``Sink``) ---------------------------------------------------------

    def deliver(self, outputs: list[Delivered]) -> None:
        """All tokens of one frame in one batch, as one engine step would give them."""
        for delivered in outputs:
            if delivered.delta.finish_reason is not None:
                self._contexts.pop(delivered.delta.request_id, None)
        self._outputs.put_nowait(EngineCoreOutputs(outputs=[to_output(o) for o in outputs]))

    def placed(self, request_id: str, plan: Plan) -> None:
        context = self._contexts.get(request_id)
        if context is not None:
            context.plans[request_id] = plan
            context.is_planned.set()

    def fail(self, request_id: str, error: DynaServeError) -> None:
        context = self._contexts.pop(request_id, None)
        if context is not None and isinstance(error, Overloaded):
            context.retry_after_s = error.retry_after_s
        self.on_failure(request_id, http_error(error))

    def report_load(self, stats: SchedulerStats) -> None:
        """Feed the pool's load into vLLM's own gauges and log line."""
        self._outputs.put_nowait(EngineCoreOutputs(scheduler_stats=stats))


def http_error(error: DynaServeError) -> Exception:
    """Our errors as vLLM's application knows to answer them."""
    match error:
        case InvalidRequest():
            return VLLMValidationError(str(error), parameter=error.param)
        case Overloaded():
            return GracefulHTTPError(str(error), HTTPStatus.TOO_MANY_REQUESTS)
        case NoInstance():
            return GracefulHTTPError(str(error), HTTPStatus.SERVICE_UNAVAILABLE)
        case _:
            return GracefulHTTPError(str(error), HTTPStatus.INTERNAL_SERVER_ERROR)
