"""Where the doctor looks when it is not told."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from dynaserve.doctor.examination import Examined, follow_gateway

Answering = Callable[[bytes], AbstractAsyncContextManager[int]]


@pytest.fixture
def answering() -> Answering:
    """An HTTP server on a loopback port that says the same to everybody."""

    @asynccontextmanager
    async def serve(body: bytes) -> AsyncIterator[int]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]

    return serve


async def test_the_pool_of_the_gateway_on_the_port_is_examined(answering: Answering) -> None:
    view = {"pool": "blue", "nats": "nats://127.0.0.1:4333", "instances": []}
    async with answering(json.dumps(view).encode()) as port:
        assert await follow_gateway(Examined(None, "default", port)) == Examined(
            "nats://127.0.0.1:4333", "blue", port
        )


async def test_a_pool_that_is_named_is_examined_whatever_the_gateway_says(
    answering: Answering,
) -> None:
    async with answering(b'{"pool": "blue", "nats": "nats://127.0.0.1:4333"}') as port:
        named = Examined("nats://bus:4222", "red", port)
        assert await follow_gateway(named) == named


async def test_another_program_on_the_port_is_no_gateway(answering: Answering) -> None:
    async with answering(b"<html>hello</html>") as port:
        where = Examined(None, "default", port)
        assert await follow_gateway(where) == where


async def test_a_free_port_is_no_gateway(answering: Answering) -> None:
    async with answering(b"") as port:
        pass
    where = Examined(None, "default", port)
    assert await follow_gateway(where) == where
