"""Records of requests that the bus keeps."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.archive import Found, RecordArchive, names_of
from shared.bus import Bus
from shared.bus_memory import MemoryBus
from shared.bus_nats import NatsBus
from shared.subjects import Subjects
from tests.unit.shared.explanation.records import handoff, record


@pytest.fixture(params=["memory", "nats"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "memory":
        opened: Bus = MemoryBus()
    else:
        opened = await NatsBus.connect(request.getfixturevalue("nats_url"), "test")
    yield opened
    await opened.close()


async def until_found(archive: RecordArchive, wanted: str) -> Found:
    async with asyncio.timeout(10):
        while not (found := await archive.find(wanted)).requests:
            await asyncio.sleep(0.01)
    return found


async def test_records_of_a_request_are_found_with_those_of_their_handoffs(
    bus: Bus, pool: str
) -> None:
    subjects = Subjects(pool)
    archive = RecordArchive(bus, subjects)
    await archive.ensure()
    await bus.publish(subjects.handoff_events, handoff(request_id="h-0-x", handoff_id="h-0-x.1"))
    for number in range(2):
        mine = record(request_id=f"h-{number}-x", http_request_id="h")
        await bus.publish(subjects.request_events, mine)
    await bus.publish(subjects.request_events, record(request_id="o", http_request_id="other h"))
    await bus.publish(subjects.handoff_events, handoff(request_id="h-9", handoff_id="h-9.1"))
    await bus.publish(subjects.request_events, b"unreadable h")
    await until_found(archive, "other h")
    found = await archive.find("h")
    assert [each.request_id for each in found.requests] == ["h-0-x", "h-1-x"]
    assert [each.handoff_id for each in found.handoffs] == ["h-0-x.1"]
    assert (await archive.find("chatcmpl-h")).requests == found.requests
    assert [r.request_id for r in (await archive.find("h-1-x")).requests] == ["h-1-x"]
    assert (await archive.find("nobody")) == Found()
    everything = [each async for each in archive.newest_first()]
    assert len(everything) == 5


def test_the_id_of_a_body_names_the_http_request() -> None:
    assert names_of("abc") == ["abc"]
    assert names_of("chatcmpl-abc") == ["chatcmpl-abc", "abc"]
    assert names_of("cmpl-abc") == ["cmpl-abc", "abc"]
