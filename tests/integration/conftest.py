"""Fixtures of the tests that talk to a whole pool."""

from collections.abc import AsyncIterator

import httpx
import pytest
from openai import AsyncOpenAI

from dynaserve.local_pool.background import BackgroundPool
from shared.bus_nats import NatsBus
from tests.integration.pool_client import Watcher


@pytest.fixture
async def openai(engine_pool: BackgroundPool) -> AsyncIterator[AsyncOpenAI]:
    """The client users have, pointed at the pool."""
    async with AsyncOpenAI(
        base_url=f"{engine_pool.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


@pytest.fixture
async def watcher(engine_pool: BackgroundPool) -> AsyncIterator[Watcher]:
    """The pool's bus and records."""
    bus = await NatsBus.connect(engine_pool.nats_url, "watcher")
    try:
        async with httpx.AsyncClient(base_url=engine_pool.url, timeout=10) as http:
            yield Watcher(engine_pool, bus, http)
    finally:
        await bus.close()
