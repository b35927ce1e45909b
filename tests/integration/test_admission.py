"""A pool that is asked for more than it can do in time says so at once, with the time to come back.

The simulated engines take many times what their latency model says: the predictions are wrong, and
admission has to find out by how much from the first tokens it sees.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from dynaserve.local_pool.background import BackgroundPool
from dynaserve.local_pool.settings import PoolSettings
from dynaserve.testing import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(200)]

NUMBERS = itertools.count()
PROMPT_TOKENS = 600


@pytest.fixture(scope="module")
def slow_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundPool]:
    settings = PoolSettings(
        engine="simulated",
        instances=2,
        schedulers=2,
        policy="colocated",
        port=free_port(),
        pool="admission",
        slo_ttft_ms=1000.0,
        queue_classes="batch",
        log_folder=tmp_path_factory.mktemp("logs"),
        engine_args=["--slowdown=10", "--max-num-batched-tokens=512"],
    )
    with BackgroundPool(settings) as pool:
        yield pool


@pytest.fixture
async def client(slow_pool: BackgroundPool) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=slow_pool.url, timeout=60, limits=limits) as client:
        yield client


async def ask(client: httpx.AsyncClient, slo_class: str = "chat") -> httpx.Response:
    """A prompt nobody has asked before: none of it is cached."""
    start = 97 * next(NUMBERS)
    prompt = [(start + 31 * n) % 400 for n in range(PROMPT_TOKENS)]
    body = {"model": "demo", "prompt": prompt, "max_tokens": 2, "ignore_eos": True}
    return await client.post("/v1/completions", json=body, headers={"x-slo-class": slo_class})


async def burst(client: httpx.AsyncClient, count: int, slo_class: str) -> list[httpx.Response]:
    return await asyncio.gather(*(ask(client, slo_class) for _ in range(count)))


async def test_what_cannot_be_in_time_is_refused_and_what_may_wait_is_not(
    client: httpx.AsyncClient,
) -> None:
    seen = await burst(client, 40, "chat")  # as nobody knows better, most are admitted
    assert sum(answer.status_code == 200 for answer in seen) >= 16
    late = await burst(client, 80, "chat")
    refused = [answer for answer in late if answer.status_code == 429]
    assert refused and {answer.status_code for answer in late} <= {200, 429}
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        error = answer.json()["error"]
        assert error["code"] == 429 and error["type"]
        assert "predicted time to first token" in error["message"]
        assert "the objective is 1.00 s" in error["message"]
    batch = await burst(client, 80, "batch")
    assert {answer.status_code for answer in batch} == {200}
    assert (await ask(client)).status_code == 200, "an idle pool takes what it is asked"
