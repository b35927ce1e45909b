"""HTTP routes of the live page: the page itself and its events."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from services.gateway.live.broadcast import Broadcast, TooManyClients

SEND_TIMEOUT_S = 20.0
"""A client that takes nothing for so long is gone."""

HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def live_routes(broadcast: Broadcast, busy: Callable[[], Response]) -> list[Route]:
    """The page and its events; ``busy`` is the answer to one client too many."""
    html = files("services.gateway.live").joinpath("page.html").read_text("utf-8")

    async def page(_request: Request) -> Response:
        return HTMLResponse(html, headers=HEADERS)

    async def events(_request: Request) -> Response:
        snapshots = broadcast.listen()
        try:
            first = await anext(snapshots)
        except TooManyClients:
            return busy()
        return Events(first, snapshots)

    return [Route("/dynaserve", page), Route("/dynaserve/events", events)]


class Events(Response):
    """Server-sent events until the client leaves or stops taking them."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, following: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._following = following

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        gone = asyncio.create_task(_until_gone(receive))
        telling = asyncio.create_task(self._tell(send))
        try:
            await asyncio.wait({gone, telling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, telling):
                task.cancel()
            await asyncio.gather(gone, telling, return_exceptions=True)
            await self._following.aclose()

    async def _tell(self, send: Send) -> None:
        data = self._first
        with contextlib.suppress(TimeoutError, StopAsyncIteration):
            while True:
                body = b"data: " + data + b"\n\n"
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                data = await anext(self._following)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
