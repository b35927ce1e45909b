"""Snapshots for many clients."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from services.gateway.live.broadcast import INTERVAL_S, MAX_CLIENTS, Broadcast, TooManyClients
from shared.clock import ManualClock
from tests.unit.gateway.fake_pool import settle


class Scene:
    """A broadcast that numbers its snapshots, under a clock that stands still."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.made = itertools.count()
        self.broadcast = Broadcast(lambda: b"%d" % next(self.made), self.clock)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    running = asyncio.create_task(scene.broadcast.run())
    yield scene
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def turns(scene: Scene, count: int) -> None:
    for _ in range(count):
        await settle()
        scene.clock.advance(INTERVAL_S)
    await settle()


async def test_nothing_is_made_while_nobody_listens(scene: Scene) -> None:
    await turns(scene, 10)
    assert next(scene.made) == 0


async def test_every_client_gets_the_same_snapshots(scene: Scene) -> None:
    first, second = scene.broadcast.listen(), scene.broadcast.listen()
    await anext(first), await anext(second)
    await turns(scene, 1)
    assert await anext(first) == await anext(second)
    await close(first, second)


async def test_a_client_that_sleeps_gets_the_newest_and_not_the_backlog(scene: Scene) -> None:
    slow = scene.broadcast.listen()
    assert await anext(slow) == b"0"
    await turns(scene, 20)
    newest = int(await anext(slow))
    assert newest >= 20
    await turns(scene, 1)
    assert int(await anext(slow)) == newest + 1
    await close(slow)


async def test_clients_are_bounded_and_their_places_come_free(scene: Scene) -> None:
    clients = [scene.broadcast.listen() for _ in range(MAX_CLIENTS)]
    for client in clients:
        await anext(client)
    with pytest.raises(TooManyClients):
        await anext(scene.broadcast.listen())
    await clients[0].aclose()
    again = scene.broadcast.listen()
    await anext(again)
    assert scene.broadcast.num_clients == MAX_CLIENTS
    await close(again, *clients)
    assert scene.broadcast.num_clients == 0


async def test_stopping_lets_every_client_go(scene: Scene) -> None:
    client = scene.broadcast.listen()
    await anext(client)
    await turns(scene, 2)
    scene.broadcast.stop()
    with pytest.raises(StopAsyncIteration):
        await anext(client)


async def close(*clients: AsyncGenerator[bytes, None]) -> None:
    for client in clients:
        await client.aclose()
