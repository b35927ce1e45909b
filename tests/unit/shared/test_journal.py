"""What is kept on the bus, in memory and on a real server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from nats.aio.client import Client

from shared.bus import Bus, Journal, JournalConfig
from shared.bus_memory import MemoryBus
from shared.bus_nats import NatsBus
from shared.errors import BusError
from shared.journal_memory import MemoryJournal
from shared.journal_nats import WINDOW

Open = Callable[[], contextlib.AbstractAsyncContextManager[Bus]]


@pytest.fixture(params=["memory", "nats"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "memory":
        opened: Bus = MemoryBus()
    else:
        opened = await NatsBus.connect(request.getfixturevalue("nats_url"), "test")
    yield opened
    await opened.close()


def config(pool: str, max_bytes: int = 10**6, max_age_s: float = 60.0) -> JournalConfig:
    return JournalConfig(f"journal_{pool}", (f"{pool}.a", f"{pool}.b"), max_age_s, max_bytes)


async def kept(journal: Journal) -> list[bytes]:
    return [delivery.data async for delivery in journal.newest_first()]


async def until_kept(journal: Journal, count: int) -> list[bytes]:
    async with asyncio.timeout(10):
        while len(found := await kept(journal)) < count:
            await asyncio.sleep(0.01)
    return found


async def test_what_was_published_is_read_back_newest_first(bus: Bus, pool: str) -> None:
    journal = bus.journal(config(pool))
    await journal.ensure()
    for number in range(5):
        await bus.publish(f"{pool}.{'ab'[number % 2]}", b"%d" % number)
    await bus.publish(f"{pool}.c", b"not kept")
    assert await until_kept(journal, 5) == [b"4", b"3", b"2", b"1", b"0"]
    again = bus.journal(config(pool))
    await again.ensure()
    assert len(await kept(again)) == 5


async def test_more_than_one_window_is_read_back_without_a_hole(bus: Bus, pool: str) -> None:
    journal = bus.journal(config(pool))
    await journal.ensure()
    count = 2 * WINDOW + 7
    for number in range(count):
        await bus.publish(f"{pool}.a", b"%d" % number)
    assert [int(data) for data in await until_kept(journal, count)] == [*reversed(range(count))]


async def test_the_oldest_goes_when_the_bytes_are_used_up(bus: Bus, pool: str) -> None:
    journal = bus.journal(config(pool, max_bytes=10_000))
    await journal.ensure()
    for number in range(100):
        await bus.publish(f"{pool}.a", b"%04d" % number + b"x" * 500)
    async with asyncio.timeout(10):
        while not (found := await kept(journal)) or found[0][:4] != b"0099":
            await asyncio.sleep(0.01)
    numbers = [int(data[:4]) for data in found]
    assert numbers == [*range(99, 99 - len(numbers), -1)]
    assert 10 <= len(numbers) < 20


async def test_an_unmade_journal_is_empty(bus: Bus, pool: str) -> None:
    assert await kept(bus.journal(config(pool))) == []


async def test_in_memory_what_is_too_old_is_not_read_back() -> None:
    bus, now_s = MemoryBus(), 0.0
    journal = MemoryJournal(bus, config("p", max_age_s=10.0), lambda: now_s)
    await journal.ensure()
    await bus.publish("p.a", b"old")
    await until_kept(journal, 1)
    now_s = 11.0
    await bus.publish("p.a", b"new")
    assert await until_kept(journal, 1) == [b"new"]
    await bus.close()


async def test_later_bounds_replace_earlier_ones_and_storage_stays(
    nats_url: str, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    bus = await NatsBus.connect(nats_url, "test")
    await bus.journal(config(pool)).ensure()
    wider = JournalConfig(f"journal_{pool}", (f"{pool}.a",), 120.0, 2 * 10**6, storage="file")
    later = bus.journal(wider)
    await later.ensure()
    await later.ensure()
    assert caplog.text.count("delete it to have it kept in file") == 1
    client = Client()
    await client.connect(nats_url)
    found = (await client.jetstream().stream_info(f"journal_{pool}")).config
    assert (found.max_age, found.max_bytes, found.subjects) == (120.0, 2 * 10**6, [f"{pool}.a"])
    assert found.storage == "memory"
    await client.close()
    await bus.close()


async def test_a_bus_that_is_away_is_an_error_of_the_bus(nats_url: str, pool: str) -> None:
    bus = await NatsBus.connect(nats_url, "test")
    journal = bus.journal(config(pool))
    await bus.close()
    with pytest.raises(BusError):
        await journal.ensure()
    with pytest.raises(BusError):
        await kept(journal)
