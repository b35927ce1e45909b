"""A short soak: what the long one shows, on the pool of the tests."""

import pytest

from benchmarks.soak.load import make_load
from benchmarks.soak.run import Soak
from dynaserve.local_pool.background import BackgroundPool
from tests.integration.pool_client import MODEL, Watcher

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400)]


async def test_after_100_requests_and_many_cancels_nothing_is_held(
    engine_pool: BackgroundPool, watcher: Watcher
) -> None:
    load = list(make_load(100, seed=7, vocabulary=range(10, 2000)))
    soak = Soak(engine_pool.url, MODEL, watcher.bus, watcher.subjects, engine_pool.instance_ids)
    result = await soak.run(load, concurrency=12)
    assert result.failed == {}
    assert result.leaks == []
    assert result.completed + result.cancelled == 100
    assert result.cancelled >= 20
    assert result.handoffs["adopted"] >= 40
