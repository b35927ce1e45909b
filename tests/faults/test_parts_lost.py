"""Parts of the pool are killed while requests run: clients see one stream, whole and exact."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types import Completion

from dynaserve.accounts import until_balanced
from dynaserve.local_pool.background import BackgroundPool
from dynaserve.testing import wait_until_whole
from shared.bus import Delivery
from shared.schemas.tokens import GATEWAY, TokenFrame
from tests.integration.pool_client import MODEL, PROMPT, UNCUT, Watcher, cut_at

pytestmark = [pytest.mark.engine, pytest.mark.faults, pytest.mark.timeout(300)]

P = len(PROMPT)
MAX_TOKENS = 300
KILLS = 3
"""Attempts: on a busy host a stream may be read so late that its request has ended by then."""


async def ask(
    openai: AsyncOpenAI,
    extra: dict[str, Any],
    request_id: str = "",
    temperature: float = 0,
) -> AsyncStream[Completion]:
    return await openai.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=MAX_TOKENS,
        temperature=temperature,
        seed=5,
        stream=True,
        extra_body=extra,
        extra_headers={"x-request-id": request_id or uuid.uuid4().hex},
    )


async def token_ids(stream: AsyncStream[Completion]) -> AsyncIterator[list[int]]:
    async for chunk in stream:
        extra = chunk.choices[0].model_extra or {} if chunk.choices else {}
        yield list(extra.get("token_ids") or [])


async def collect(stream: AsyncStream[Completion]) -> list[int]:
    return [token async for ids in token_ids(stream) for token in ids]


class TokenSource:
    """Which instance the gateway heard of last: tests that want to kill it ask here."""

    def __init__(self) -> None:
        self.instance_id = ""

    async def on_message(self, delivery: Delivery) -> None:
        message = GATEWAY.validate_json(delivery.data)
        if isinstance(message, TokenFrame):
            self.instance_id = message.instance_id


@pytest.fixture
async def source(watcher: Watcher) -> TokenSource:
    listening = TokenSource()
    await watcher.bus.subscribe(watcher.subjects.gateway("gateway-0"), listening.on_message)
    return listening


@pytest.mark.parametrize(("cut", "temperature"), [(None, 0), (40, 0), (P + 250, 0), (None, 1)])
async def test_an_instance_killed_in_mid_stream_is_not_noticed_in_the_output(
    openai: AsyncOpenAI,
    watcher: Watcher,
    source: TokenSource,
    engine_pool: BackgroundPool,
    cut: int | None,
    temperature: float,
) -> None:
    extra = UNCUT if cut is None else cut_at(cut)
    expected = await collect(await ask(openai, UNCUT, temperature=temperature))
    for _attempt in range(KILLS):
        request_id = uuid.uuid4().hex
        stream = await ask(openai, extra, request_id, temperature)
        got: list[int] = []
        killed = None
        async for ids in token_ids(stream):
            got += ids
            if len(got) >= 8 and killed is None:
                killed = source.instance_id
                engine_pool.kill(killed)
        assert killed
        assert got == expected
        (record,) = await watcher.records(request_id)
        if record["epochs"] > 1:
            break
        await asyncio.to_thread(wait_until_whole, engine_pool)
    assert record["epochs"] == 2
    assert record["plan"]["alpha_id"] != killed


async def test_without_the_kv_transfer_service_a_cut_request_still_gives_its_output(
    openai: AsyncOpenAI, watcher: Watcher, engine_pool: BackgroundPool
) -> None:
    """Killed while alpha decodes: the link is there already, or beta helps itself."""
    expected = await collect(await ask(openai, UNCUT))
    stream = await ask(openai, cut_at(P + 80))
    got: list[int] = []
    killed = False
    async for ids in token_ids(stream):
        got += ids
        if len(got) >= 4 and not killed:
            killed = True
            engine_pool.kill("kv-transfer-0")
    assert killed
    assert got == expected


async def test_without_one_of_two_schedulers_requests_go_on_being_placed(
    openai: AsyncOpenAI, engine_pool: BackgroundPool
) -> None:
    expected = await collect(await ask(openai, UNCUT))
    running = [asyncio.create_task(collect(await ask(openai, cut_at(P + 10 * n)))) for n in (1, 2)]
    engine_pool.kill("scheduler-0")
    placed = [await collect(await ask(openai, cut_at(40))) for _ in range(4)]
    assert placed == [expected] * 4
    assert await asyncio.gather(*running) == [expected] * 2


async def test_a_paused_instance_is_given_up_and_its_late_words_are_refused(
    openai: AsyncOpenAI, watcher: Watcher, source: TokenSource, engine_pool: BackgroundPool
) -> None:
    """It comes back with tokens of an epoch that is over: each token is still seen once."""
    expected = await collect(await ask(openai, UNCUT))
    before = await watcher.accounts()
    stream = await ask(openai, UNCUT)
    got: list[int] = []
    paused = None
    try:
        async for ids in token_ids(stream):
            got += ids
            if len(got) >= 8 and paused is None:
                paused = source.instance_id
                engine_pool.pause(paused)
    finally:
        if paused is not None:
            engine_pool.resume(paused)
    assert got == expected
    await until_balanced(watcher.bus, watcher.subjects, before, 20)
