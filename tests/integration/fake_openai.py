"""A server with the stream format of vLLM's /v1/completions and delays one knows beforehand."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from pydantic import JsonValue


@dataclass
class FakeServer:
    """Every request takes ``ttft_s`` to its first chunk and ``gap_s`` from chunk to chunk.

    ``slots`` requests run at once, others wait: the server has a capacity. Request numbers (from
    0, as they arrive) in ``refuse``, ``break_off`` and ``stall`` fare badly.
    """

    ttft_s: float = 0.05
    gap_s: float = 0.01
    tokens_per_chunk: int = 1
    slots: int = 10_000
    usage: bool = True
    refuse: frozenset[int] = frozenset()
    break_off: frozenset[int] = frozenset()
    stall: frozenset[int] = frozenset()
    stall_s: float = 0.2
    bodies: list[dict[str, JsonValue]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times_s: dict[int, list[float]] = field(default_factory=dict)
    """By request number: when it came, and when each of its chunks went."""
    on_request: Callable[[], None] = lambda: None
    url: str = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FakeServer"]:
        self._free = asyncio.Semaphore(self.slots)
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", self._version)
        app.router.add_post("/v1/completions", self._complete)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = str(site.name).rstrip("/").replace(":0", f":{runner.addresses[0][1]}")
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake", "max_model_len": 512}]})

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "9.9"})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        number = len(self.times_s)
        self.times_s[number] = [asyncio.get_running_loop().time()]
        body = await request.json()
        self.bodies.append(body)
        self.on_request()
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if number in self.refuse:
            return web.Response(status=429, headers={"Retry-After": "3"}, text="busy")
        async with self._free:
            return await self._stream(request, body, number)

    async def _stream(
        self, request: web.Request, body: dict[str, JsonValue], number: int
    ) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        prompt, left = body["prompt"], body["max_tokens"]
        assert isinstance(prompt, list) and isinstance(left, int)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        at_s, made = loop.time() + self.ttft_s, 0
        while left:
            await asyncio.sleep(at_s - loop.time())
            tokens = min(left, self.tokens_per_chunk)
            left, made = left - tokens, made + tokens
            self.times_s[number].append(loop.time())
            await answer.write(self._chunk(len(prompt), made))
            if number in self.break_off:
                assert request.transport is not None
                request.transport.abort()
                return answer
            at_s += self.stall_s if number in self.stall and made == tokens else self.gap_s
        if self.usage:
            await answer.write(_event({"choices": [], "usage": _usage(len(prompt), made)}))
        await answer.write(b"data: [DONE]\n\n")
        return answer

    def _chunk(self, prompt_tokens: int, made: int) -> bytes:
        chunk: dict[str, JsonValue] = {"choices": [{"index": 0, "text": " token"}]}
        if self.usage:
            chunk["usage"] = _usage(prompt_tokens, made)
        return _event(chunk)


def _usage(prompt_tokens: int, made: int) -> JsonValue:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + made,
        "completion_tokens": made,
    }


def _event(content: dict[str, JsonValue]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"
