"""Run designed batches on one instance, over the bus, and collect the steps it timed."""

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Sequence

from dynaserve.profile.plan import STEPS_PER_BATCH, Batch
from shared.bus import Bus, Delivery
from shared.errors import RequestFailed
from shared.schemas.message import pack_tokens
from shared.schemas.request import GenerationRequest, Slo
from shared.schemas.segment import (
    ControlReply,
    ReadSteps,
    Segment,
    SegmentCancel,
    SetBatcher,
    TimedStep,
    TimedSteps,
)
from shared.schemas.tokens import GATEWAY, SegmentFailed, TokenFrame
from shared.subjects import Subjects

ANSWER_TIMEOUT_S = 10.0
BATCH_TIMEOUT_S = 60.0
LOWEST_TOKEN, HIGHEST_TOKEN = 100, 1000
PATIENT = Slo(ttft_s=600.0, tbt_s=600.0, name="profile")


def exact_request(
    request_id: str, prompt: Sequence[int], max_tokens: int, slo: Slo, timeout_s: float
) -> GenerationRequest:
    """Greedy, and exactly ``max_tokens`` long; it arrives now."""
    now_s = time.time()
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=pack_tokens(prompt),
        sampling_params={"max_tokens": max_tokens, "ignore_eos": True, "temperature": 0.0},
        max_tokens=max_tokens,
        arrival_time_s=now_s,
        deadline_s=now_s + timeout_s,
        slo=slo,
    )


class InstanceDriver:
    """Speaks to one instance as a gateway does; owns the requests it started."""

    def __init__(self, bus: Bus, subjects: Subjects, instance_id: str, seed: int = 0) -> None:
        self._bus = bus
        self._subjects = subjects
        self._instance_id = instance_id
        self._gateway_id = f"profile-{uuid.uuid4().hex[:8]}"
        self._random = random.Random(seed)
        self._first: dict[str, asyncio.Event] = {}
        self._done: dict[str, asyncio.Future[None]] = {}

    async def start(self) -> None:
        """Listen for tokens."""
        await self._bus.subscribe(self._subjects.gateway(self._gateway_id), self._on_message)

    async def measure(
        self, batches: list[Batch], budget_s: float, progress: Callable[[int], None]
    ) -> list[TimedStep]:
        """Timed steps of as many batches as fit ``budget_s``; the batcher is put back at the end.

        Batches come cheapest first; one that would not end in time by what the last one took is
        not begun. Raises RequestFailed when the instance fails a request, BusTimeout when it does
        not answer.
        """
        until_s = time.monotonic() + budget_s
        token_s = 0.0
        steps: list[TimedStep] = []
        try:
            await self._run(batches[0])  # warm-up: compiled kernels, page faults
            await self._read_steps()
            for index, batch in enumerate(batches):
                begun_s = time.monotonic()
                if begun_s + token_s * batch.kv_tokens > until_s:
                    break
                await self._run(batch)
                token_s = (time.monotonic() - begun_s) / batch.kv_tokens
                steps += await self._read_steps()
                progress(index + 1)
        finally:
            await self._set_batcher("slo")
        return steps

    async def _run(self, batch: Batch) -> None:
        """Decodes first; once all decode, prompts join one after the other."""
        await self._set_batcher(f"static:{batch.step_tokens}")
        async with asyncio.timeout(BATCH_TIMEOUT_S):
            decodes = [
                await self._send(batch.context_tokens, STEPS_PER_BATCH * 4)
                for _ in range(batch.num_decodes)
            ]
            for request_id in decodes:
                await self._first[request_id].wait()
            for length in batch.prompts:
                await self._done[await self._send(length, 2)]
            for request_id in decodes:
                await self._cancel(request_id)

    async def _send(self, num_prompt: int, max_tokens: int) -> str:
        request_id = f"{self._gateway_id}-{len(self._done)}"
        self._first[request_id] = asyncio.Event()
        self._done[request_id] = asyncio.get_running_loop().create_future()
        prompt = [self._random.randint(LOWEST_TOKEN, HIGHEST_TOKEN) for _ in range(num_prompt)]
        request = exact_request(request_id, prompt, max_tokens, PATIENT, BATCH_TIMEOUT_S)
        segment = Segment(role="whole", epoch=1, gateway_id=self._gateway_id, request=request)
        await self._bus.publish(self._subjects.segment(self._instance_id), segment)
        return request_id

    async def _cancel(self, request_id: str) -> None:
        cancel = SegmentCancel(request_id=request_id, epoch=1, reason="profiled")
        await self._bus.publish(self._subjects.control(self._instance_id), cancel)

    async def _set_batcher(self, mode: str) -> None:
        answer = await self._bus.request(
            self._subjects.control(self._instance_id), SetBatcher(mode=mode), ANSWER_TIMEOUT_S
        )
        ControlReply.model_validate_json(answer.data)

    async def _read_steps(self) -> list[TimedStep]:
        answer = await self._bus.request(
            self._subjects.control(self._instance_id), ReadSteps(), ANSWER_TIMEOUT_S
        )
        return TimedSteps.model_validate_json(answer.data).steps

    async def _on_message(self, delivery: Delivery) -> None:
        message = GATEWAY.validate_json(delivery.data)
        if isinstance(message, SegmentFailed):
            self._fail(message)
        elif isinstance(message, TokenFrame):
            for delta in message.deltas:
                self._first[delta.request_id].set()
                done = self._done[delta.request_id]
                if delta.finish_reason is not None and not done.done():
                    done.set_result(None)

    def _fail(self, failed: SegmentFailed) -> None:
        self._first[failed.request_id].set()
        done = self._done[failed.request_id]
        if not done.done():
            done.set_exception(RequestFailed(f"{failed.instance_id}: {failed.message}"))
