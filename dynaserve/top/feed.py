"""Snapshots of the pool from a gateway's events, over as many connections as it takes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
from pydantic import ValidationError

from shared.schemas.live import LiveSnapshot

SILENT_S = 5.0
RETRY_S = 1.0
PREFIX = "data: "


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why there is nothing new; it is being tried again."""

    message: str


async def feed(url: str) -> AsyncIterator[LiveSnapshot | Trouble]:
    """For ever; a connection that breaks or falls silent is made anew."""
    timeout = httpx.Timeout(SILENT_S)
    async with httpx.AsyncClient(base_url=url, timeout=timeout) as client:
        while True:
            try:
                async for snapshot in _connection(client):
                    yield snapshot
                yield Trouble(f"{url} closed the connection")
            except httpx.HTTPStatusError as error:
                yield Trouble(f"{url} answers {error.response.status_code}: no live view there")
            except (httpx.HTTPError, ValidationError) as error:
                yield Trouble(f"no word from {url} ({type(error).__name__})")
            await asyncio.sleep(RETRY_S)


async def _connection(client: httpx.AsyncClient) -> AsyncIterator[LiveSnapshot]:
    async with client.stream("GET", "/dynaserve/events") as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith(PREFIX):
                yield LiveSnapshot.model_validate_json(line.removeprefix(PREFIX))
