"""A small mixed load on a pool: three classes, some requests cut, all streamed."""

import asyncio
import random
import threading
from types import TracebackType
from typing import Self

import httpx

from tests.integration.observed_pool import ask

Class = tuple[str, int, int, float, float]
"""Name, prompt and output tokens, objectives of TTFT and TBT in milliseconds."""

CLASSES: tuple[Class, ...] = (
    ("chat", 300, 30, 800, 60),
    ("code", 700, 20, 1500, 100),
    ("batch", 1200, 12, 6000, 250),
)


class Load:
    """Runs on a thread of its own until the block ends."""

    def __init__(
        self, url: str, rate_per_s: float, classes: tuple[Class, ...] = CLASSES, seed: int = 7
    ) -> None:
        self._url = url
        self._classes = classes
        self._rate_per_s = rate_per_s
        self._dice = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=200)
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=60, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            while not self._stop.is_set():
                group.create_task(self._send(client))
                await asyncio.sleep(self._dice.expovariate(self._rate_per_s))

    async def _send(self, client: httpx.AsyncClient) -> None:
        name, prompt, output, ttft_ms, tbt_ms = self._dice.choice(self._classes)
        prompt = max(8, round(prompt * self._dice.lognormvariate(0, 0.4)))
        output = max(2, round(output * self._dice.lognormvariate(0, 0.6)))
        cut = None
        if self._dice.random() < 0.4:
            place = self._dice.choice([round(0.6 * prompt), prompt - 1, prompt, prompt + 3])
            cut = max(1, min(place, prompt + output - 2))
        headers = {
            "x-slo-class": name,
            "x-slo-ttft-ms": str(ttft_ms),
            "x-slo-tpot-ms": str(tbt_ms),
        }
        body = ask(min(prompt, 1800), output, cut if cut is None else min(cut, 1800))
        async with client.stream(
            "POST", "/v1/completions", json={**body, "stream": True}, headers=headers
        ) as answer:
            async for _ in answer.aiter_bytes():
                pass
