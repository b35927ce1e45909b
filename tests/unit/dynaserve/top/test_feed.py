"""Snapshots from a gateway that comes and goes."""

import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dynaserve.top import feed as module
from dynaserve.top.feed import Trouble, feed
from shared.bus import encode
from shared.schemas.live import LiveSnapshot
from tests.unit.dynaserve.top.test_top import snapshot


class Gateway(BaseHTTPRequestHandler):
    """Answers with what ``answers`` holds next: a status and a body; then closes."""

    answers: list[tuple[int, bytes]]

    def do_GET(self) -> None:
        assert self.path == "/dynaserve/events"
        status, body = self.answers.pop(0)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    event = b"data: " + encode(snapshot()) + b"\n\n"
    Gateway.answers = [(200, event * 2), (503, b"full"), (200, b"data: {}\n\n"), (200, event)]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def take(news: AsyncIterator[LiveSnapshot | Trouble], count: int) -> list[str]:
    taken = []
    async for each in news:
        taken.append(each.message if isinstance(each, Trouble) else "snapshot")
        if len(taken) == count:
            break
    return taken


async def test_a_connection_that_ends_is_made_anew_and_trouble_is_told(url: str) -> None:
    first, second, closed, full, unreadable, again = await take(feed(url), 6)
    assert (first, second, again) == ("snapshot",) * 3
    assert "closed the connection" in closed
    assert "answers 503" in full
    assert "ValidationError" in unreadable


async def test_nobody_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    (said,) = await take(feed("http://127.0.0.1:1"), 1)
    assert "no word from http://127.0.0.1:1 (ConnectError)" in said
