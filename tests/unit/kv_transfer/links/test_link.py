"""The queue to a link's writer, and the box of news."""

import threading

from services.kv_transfer.links.events import Failed, News, Readied
from services.kv_transfer.links.half import Memory
from services.kv_transfer.links.link import Outbox


def test_an_outbox_is_bounded_and_in_order() -> None:
    outbox: Outbox[int] = Outbox(2)
    assert outbox.put(1) and outbox.put(2) and not outbox.put(3)
    assert (outbox.get(), outbox.get()) == (1, 2)


def test_closing_an_outbox_wakes_its_reader_and_drops_what_waits() -> None:
    outbox: Outbox[int] = Outbox(2)
    got: list[int | None] = []
    reader = threading.Thread(target=lambda: got.append(outbox.get()))
    reader.start()
    outbox.close()
    reader.join(5)
    assert got == [None] and not outbox.put(1)


def test_news_wake_once_until_they_are_taken() -> None:
    calls: list[str] = []
    news = News(lambda: calls.append("wake"))
    news.announce()
    assert calls == []
    news.add(Readied("h", 1, 0, 0.1))
    news.announce()
    news.add_failed(Failed("h", 1, "why", 0), outgoing=True)
    news.announce()
    assert calls == ["wake"]
    taken = news.take()
    assert taken.ready and taken.failed_outgoing and not news.take()
    news.add_staging_freed()
    news.announce()
    assert calls == ["wake"] * 2 and news.take().staging_freed


def test_forgotten_news_are_of_one_handoff_and_direction() -> None:
    news = News(lambda: None)
    for name in ("x", "y"):
        news.add_failed(Failed(name, 1, "why", 0), outgoing=True)
        news.add_failed(Failed(name, 1, "why", 0), outgoing=False)
    news.forget("x", outgoing=True)
    taken = news.take()
    assert [e.handoff_id for e in taken.failed_outgoing] == ["y"]
    assert [e.handoff_id for e in taken.failed_incoming] == ["x", "y"]


def test_memory_keeps_the_newest() -> None:
    memory: Memory[int] = Memory(2)
    for i, name in enumerate(["a", "b", "a", "c"]):
        memory.keep(name, i)
    assert (memory.get("a"), memory.get("b"), memory.get("c")) == (2, None, 3)
