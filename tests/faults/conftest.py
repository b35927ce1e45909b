"""Fixtures of the tests in which something breaks."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI

from dynaserve.local_pool.background import BackgroundPool
from shared.registry import PoolRegistry
from tests.faults.driver import Driver
from tests.integration.conftest import openai as openai
from tests.integration.conftest import watcher as watcher
from tests.integration.pool_client import Watcher

__all__ = ["AsyncOpenAI", "openai", "watcher"]


@pytest.fixture
async def driver(watcher: Watcher, engine_pool: BackgroundPool) -> AsyncIterator[Driver]:
    """A stand-in for gateway, scheduler and coordinator on the pool's bus."""
    registry = PoolRegistry(watcher.bus, watcher.subjects)
    following = asyncio.create_task(registry.run())
    async with asyncio.timeout(10):
        await registry.wait_until(lambda r: set(r.instances) >= set(engine_pool.instance_ids))
    driving = Driver(watcher.bus, watcher.subjects, registry.instances)
    await driving.start()
    yield driving
    following.cancel()
    await asyncio.wait({following})
