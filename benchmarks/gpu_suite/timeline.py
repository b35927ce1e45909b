"""Where the time to a first token goes on an idle pool: one request at a time over HTTP."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
import uuid
from collections.abc import Mapping
from typing import Any

import aiohttp

PHASES = ("to_gateway_ms", "placing_ms", "to_instance_ms", "engine_and_back_ms", "to_client_ms")
FIRST_TOKEN, LAST_TOKEN = 100, 1900
RECORD_S = 5.0


async def measure(url: str, model: str, prompt_tokens: int, repeats: int) -> dict[str, object]:
    """Medians over ``repeats`` requests. All clocks are this host's."""
    rng = random.Random(7)
    seen: list[dict[str, float]] = []
    async with aiohttp.ClientSession(url) as session:
        for _ in range(repeats + 2):
            prompt = rng.choices(range(FIRST_TOKEN, LAST_TOKEN), k=prompt_tokens)
            seen.append(await _one(session, model, prompt))
    return {
        "prompt_tokens": prompt_tokens,
        "repeats": repeats,
        **{name: statistics.median(each[name] for each in seen[2:]) for name in seen[0]},
    }


async def _one(session: aiohttp.ClientSession, model: str, prompt: list[int]) -> dict[str, float]:
    name = uuid.uuid4().hex
    body = {"model": model, "prompt": prompt, "max_tokens": 16, "ignore_eos": True, "stream": True}
    data, headers = json.dumps(body).encode(), {"X-Request-Id": name}
    headers["Content-Type"] = "application/json"
    sent_s = time.time()
    first_s = None
    async with session.post("/v1/completions", data=data, headers=headers) as response:
        response.raise_for_status()
        async for _ in response.content.iter_any():
            first_s = first_s or time.time()
    assert first_s is not None
    return phases(sent_s, first_s, await _record(session, name))


async def _record(session: aiohttp.ClientSession, name: str) -> Mapping[str, Any]:
    """The gateway's record; it is written when the stream has ended. Raises TimeoutError."""
    async with asyncio.timeout(RECORD_S):
        while True:
            async with session.get(f"/dynaserve/requests/{name}") as response:
                found: list[dict[str, Any]] = (await response.json()).get("requests", [])
            if found and found[0]["segments"]:
                return found[0]
            await asyncio.sleep(0.02)


def phases(sent_s: float, first_s: float, record: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of each phase, and in all. ``record`` is the gateway's of the request."""
    arrived_s, placing_s = record["arrival_at_s"], record["place_s"]
    received_s = record["segments"][0]["received_s"]
    token_s = arrived_s + record["ttft_s"]
    marks = (sent_s, arrived_s, arrived_s + placing_s, received_s, token_s, first_s)
    spans = zip(PHASES, marks, marks[1:], strict=False)
    return {name: 1e3 * (b - a) for name, a, b in spans} | {"ttft_ms": 1e3 * (first_s - sent_s)}
