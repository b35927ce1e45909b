"""A short load of everything: classes, cuts everywhere, bursts, clients that leave."""

import asyncio
import itertools
import time

import httpx

from tests.integration.observed_pool import ask

P = 400
CLASSES = {"chat": ("2000", "100"), "batch": ("10000", "500"), "tight": ("40", "5")}
CUTS: list[int | str | None] = [None, "never", 128, P - 1, P, P + 8]
BURST = 40


async def run(url: str, for_s: float, pause_s: float = 0.15) -> None:
    """Requests at an even rate for a while, and two bursts larger than the gateway takes."""
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        async with asyncio.TaskGroup() as tasks:
            kinds = itertools.cycle(itertools.product(CLASSES, CUTS))
            end_s = time.monotonic() + for_s
            for number in itertools.count():
                if time.monotonic() > end_s:
                    break
                slo_class, cut = next(kinds)
                tasks.create_task(_complete(client, slo_class, cut))
                if number % 10 == 5:
                    tasks.create_task(_leave(client))
                if number % 40 == 20:
                    for _ in range(BURST):
                        tasks.create_task(_complete(client, "batch", None))
                await asyncio.sleep(pause_s)


async def _complete(client: httpx.AsyncClient, slo_class: str, cut: int | str | None) -> None:
    answer = await client.post("/v1/completions", json=ask(P, 24, cut), headers=_headers(slo_class))
    assert answer.status_code in (200, 429), answer.text


async def _leave(client: httpx.AsyncClient) -> None:
    """Read a little of a long answer and hang up."""
    body = {**ask(P, 1000), "stream": True}
    stream = client.stream("POST", "/v1/completions", json=body, headers=_headers("batch"))
    async with stream as answer:
        async for _ in answer.aiter_lines():
            break


def _headers(slo_class: str) -> dict[str, str]:
    ttft_ms, tbt_ms = CLASSES[slo_class]
    return {"x-slo-class": slo_class, "x-slo-ttft-ms": ttft_ms, "x-slo-tpot-ms": tbt_ms}
