"""The pool in a terminal, driven by keys."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from dynaserve.explain import fetch
from dynaserve.top import detail
from dynaserve.top.app import TopApp
from dynaserve.top.feed import Trouble
from services.gateway.live.view import LiveView
from shared.archive import Found
from shared.bus_memory import MemoryBus
from shared.registry import PoolRegistry
from shared.schemas.live import InstanceStatus, LiveSnapshot
from shared.schemas.request import Slo
from shared.subjects import Subjects
from tests.unit.shared.explanation.records import (
    AT_S,
    cut_record,
    handoff,
    missed,
    record,
    timing,
)

LATE = missed(
    request_id="late",
    http_request_id="http-late",
    slo=Slo(ttft_s=0.1, tbt_s=1.0, name="chat"),
    segments=[timing("a", "whole", 0.0, 0.28, 1.3)],
)


def instance(name: str, share: float = 0.2, state: str = "ready") -> InstanceStatus:
    return InstanceStatus.model_validate(
        {
            "instance_id": name,
            "state": state,
            "silent_s": 9.0 if state == "silent" else 0.0,
            "role": "any",
            "device": "simulated",
            "engine": "simulated",
            "mode": "slo",
            "num_decodes": 3,
            "num_prefills": 1,
            "num_waiting": 0,
            "num_waiting_for_kv": 0,
            "outstanding_prefill_tokens": 0,
            "budget_tokens": 0,
            "kv_used": 0.5,
            "step_s": 0.02,
            "predicted_step_s": 0.02,
            "step_share": share,
            "tokens_per_s": 100.0,
            "num_preemptions": 0,
        }
    )


def snapshot(problem: str | None = None) -> LiveSnapshot:
    view = LiveView("pool", "g", PoolRegistry(MemoryBus(), Subjects("pool")), AT_S)
    view.add_request(record())
    view.add_request(cut_record(request_id="cut"))
    view.add_request(LATE)
    view.add_handoff(handoff(), AT_S)
    made = view.snapshot({}, problem, 5, AT_S + 2)
    instances = [instance("a"), instance("b", 1.4), instance("c", 0, "silent")]
    return made.model_copy(update={"instances": instances})


class Feed:
    """News that a test sends."""

    def __init__(self) -> None:
        self.news: asyncio.Queue[LiveSnapshot | Trouble] = asyncio.Queue()

    async def __call__(self, _url: str) -> AsyncIterator[LiveSnapshot | Trouble]:
        while True:
            yield await self.news.get()
            self.news.task_done()

    async def send(self, news: LiveSnapshot | Trouble) -> None:
        """Return when the application has drawn it."""
        self.news.put_nowait(news)
        async with asyncio.timeout(10):
            await self.news.join()


def keys(app: TopApp, name: str) -> list[str | None]:
    return [key.value for key in app.query_one(f"#{name}", DataTable).rows]


def headline(app: TopApp) -> str:
    return str(app.query_one("#headline", Static).render())


def cells(app: TopApp, name: str, key: str) -> str:
    return " ".join(str(cell) for cell in app.query_one(f"#{name}", DataTable).get_row(key))


async def until_shown(pilot: Pilot[None], wanted: str) -> None:
    """Return once the explanation on the screen says so."""
    body = pilot.app.screen.query_one("#explanation", Static)
    async with asyncio.timeout(10):
        while True:
            await pilot.pause()
            lines = (strip.text for strip in body.render_lines(body.size.region))
            if wanted in "\n".join(lines):
                return


@pytest.fixture
def feed() -> Feed:
    return Feed()


async def test_a_snapshot_fills_all_tables(feed: Feed) -> None:
    app = TopApp("http://gateway", feed)
    async with app.run_test(size=(150, 40)):
        await feed.send(snapshot())
        assert "serving" in headline(app) and "3 instances" in headline(app)
        assert keys(app, "classes") == ["chat", "default"]
        assert keys(app, "instances") == ["a", "b", "c"]
        assert keys(app, "requests") == ["late", "cut", "r"]
        assert keys(app, "handoffs") == ["r.1"]
        assert "▲ late" in cells(app, "instances", "b")
        assert "▲ silent 9 s" in cells(app, "instances", "c")
        assert "queue" in cells(app, "requests", "late")
        assert "a → b" in cells(app, "requests", "cut")
        assert "▲ 0.0%" in cells(app, "classes", "chat")


async def test_keys_choose_what_is_shown(feed: Feed) -> None:
    app = TopApp("http://gateway", feed)
    async with app.run_test(size=(100, 40)) as pilot:
        await feed.send(snapshot())
        await pilot.press("m")
        assert keys(app, "requests") == ["late"]
        await pilot.press("m", "w")
        assert keys(app, "requests") == ["late", "cut", "r"]
        assert keys(app, "instances") == ["c", "b", "a"]
        handoffs = app.query_one("#handoffs")
        assert not handoffs.display
        await pilot.press("h")
        assert handoffs.display
        await pilot.press("2")
        assert app.focused is app.query_one("#instances")


async def test_a_wide_terminal_shows_handoffs_beside_requests(feed: Feed) -> None:
    app = TopApp("http://gateway", feed)
    async with app.run_test(size=(150, 40)) as pilot:
        await pilot.pause()
        assert app.query_one("#handoffs").display


async def test_pause_keeps_what_is_shown_and_resume_goes_on(feed: Feed) -> None:
    app = TopApp("http://gateway", feed)
    async with app.run_test() as pilot:
        await feed.send(snapshot())
        await pilot.press("p")
        await feed.send(snapshot("no scheduler"))
        assert "paused" in headline(app) and "no scheduler" not in headline(app)
        await pilot.press("p")
        await feed.send(snapshot("no scheduler"))
        assert "cannot serve: no scheduler" in headline(app)


async def test_trouble_is_told_and_the_last_figures_stay(feed: Feed) -> None:
    app = TopApp("http://gateway", feed)
    async with app.run_test():
        await feed.send(Trouble("no word from http://gateway"))
        assert "no word from http://gateway" in headline(app)
        await feed.send(snapshot())
        await feed.send(Trouble("no word from http://gateway"))
        assert "no word" in headline(app)
        assert keys(app, "requests") == ["late", "cut", "r"]


async def test_the_cursor_stays_on_its_request_when_newer_ones_come(feed: Feed) -> None:
    app = TopApp("http://gateway", feed)
    async with app.run_test() as pilot:
        await feed.send(snapshot())
        await pilot.press("down")
        newer = snapshot()
        row = newer.requests[0].model_copy(update={"request_id": "newer"})
        await feed.send(newer.model_copy(update={"requests": [row, *newer.requests]}))
        table = app.query_one("#requests", DataTable)
        assert keys(app, "requests")[table.cursor_row] == "cut"


async def test_enter_explains_the_request_under_the_cursor(
    feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    async def answer(url: str, request_id: str) -> Found:
        asked.append((url, request_id))
        return Found([LATE])

    monkeypatch.setattr(detail, "from_gateway", answer)
    app = TopApp("http://gateway", feed)
    async with app.run_test(size=(140, 50)) as pilot:
        await feed.send(snapshot())
        await pilot.press("enter")
        await until_shown(pilot, "waited 280 ms in the queue of a")
        assert asked == [("http://gateway", "http-late")]
        await pilot.press("escape")
        assert app.query_one("#requests") is app.focused


async def test_a_record_that_is_gone_says_so(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(_url: str, _request_id: str) -> Found:
        raise fetch.NoRecord("it is gone")

    monkeypatch.setattr(detail, "from_gateway", answer)
    app = TopApp("http://gateway", feed)
    async with app.run_test() as pilot:
        await feed.send(snapshot())
        await pilot.press("e")
        await until_shown(pilot, "it is gone")
