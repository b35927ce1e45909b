"""vLLM's AsyncLLM (renderer, input and output processor, metrics) over a pool."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from vllm.config import VllmConfig
from vllm.v1.engine import async_llm
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from services.gateway.front.client import PoolEngineClient


class FrontHalf(AsyncLLM):
    """AsyncLLM that tells a client's abort from a stop string, and whose requests can fail."""

    engine_core: PoolEngineClient
    problem: Callable[[], str | None]

    async def abort(self, request_id: str | Iterable[str], internal: bool = False) -> None:
        """The caller does not want the request any more."""
        request_ids = [request_id] if isinstance(request_id, str) else list(request_id)
        aborted = self.output_processor.abort_requests(request_ids, internal)
        self.engine_core.cancel(aborted, "abort")

    def fail(self, request_id: str, error: Exception) -> None:
        """End a request with ``error``, and with it every choice of the same prompt."""
        state = self.output_processor.request_states.get(request_id)
        if state is None:
            return
        root = request_id if state.parent_req is None else state.parent_req.request_id
        aborted = self.output_processor.abort_requests([root], internal=True)
        state.queue.put(error)
        self.engine_core.cancel([each for each in aborted if each != request_id], "abort")

    async def check_health(self) -> None:
        await super().check_health()
        if self.problem() is not None:
            raise EngineDeadError()


def build_front_half(
    vllm_config: VllmConfig,
    args: argparse.Namespace,
    client: PoolEngineClient,
    problem: Callable[[], str | None],
) -> FrontHalf:
    """AsyncLLM over ``client``; starts no engine and touches no device."""
    with _engine_client_is(client):
        llm = FrontHalf.from_vllm_config(
            vllm_config,
            enable_log_requests=args.enable_log_requests,
            disable_log_stats=args.disable_log_stats,
        )
    llm.problem = problem
    client.on_failure = llm.fail
    return llm


class _Factory:
    """Stands where AsyncLLM looks for EngineCoreClient, and answers with the one we have."""

    def __init__(self, client: PoolEngineClient) -> None:
        self._client = client

    def make_async_mp_client(self, **_kwargs: object) -> PoolEngineClient:
        return self._client


@contextmanager
def _engine_client_is(client: PoolEngineClient) -> Iterator[None]:
    original = async_llm.EngineCoreClient
    async_llm.EngineCoreClient = _Factory(client)
    try:
        yield
    finally:
        async_llm.EngineCoreClient = original
