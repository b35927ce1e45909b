"""ASGI middleware around vLLM's application: request ids, objectives, and honest status codes.

vLLM answers a streamed request with 200 before it knows whether it can run, and reports an error
as the first event. Here the head of a stream is held until its first event, and when that is an
error the client gets its status and body instead, as it would without streaming.
"""

import asyncio
import contextlib
import json
import math
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.http_context import (
    PLAN_HEADER,
    HttpContext,
    current,
    operation_of,
    plan_lines,
    read_context,
)
from services.gateway.settings import GatewaySettings
from shared.errors import InvalidRequest

STREAMED_ERROR = b'data: {"error"'
BUSY_STATUS = frozenset({429, 503})
DEFAULT_RETRY_AFTER_S = 1.0
PLAN_WAIT_S = 0.5


class PoolMiddleware:
    """Outermost layer; see the module."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        try:
            context = read_context(headers, self._settings)
        except InvalidRequest as error:
            await error_response(400, "BadRequestError", f"{error.param}: {error}", error.param)(
                scope, receive, send
            )
            return
        context.operation = operation_of(scope["path"])
        context.received_s = time.time()
        # vLLM names the request after this header: one id in answer, body, log and record.
        headers["x-request-id"] = context.request_id
        current.set(context)
        await self._app(scope, receive, _Answer(context, send))


class _Answer:
    """The ``send`` of one request."""

    def __init__(self, context: HttpContext, send: Send) -> None:
        self._context = context
        self._send = send
        self._held: Message | None = None
        self._replaced = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._held is not None:
            await self._first_body(self._held, message)
        elif not self._replaced:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        self._label(message)
        if _is_stream(message):
            self._held = message
        else:
            await self._tell_plans(message)
            await self._send(message)

    async def _first_body(self, start: Message, message: Message) -> None:
        self._held = None
        body: bytes = message.get("body", b"")
        if body.startswith(STREAMED_ERROR):
            self._replaced = True
            start, message = _as_plain_error(start, body)
            self._label(start)
        await self._tell_plans(start)
        await self._send(start)
        await self._send(message)

    def _label(self, start: Message) -> None:
        headers = MutableHeaders(raw=start["headers"])
        headers["x-request-id"] = self._context.request_id
        if start["status"] in BUSY_STATUS:
            wait_s = self._context.retry_after_s or DEFAULT_RETRY_AFTER_S
            headers["retry-after"] = str(max(1, math.ceil(wait_s)))

    async def _tell_plans(self, start: Message) -> None:
        """A stream's first event comes with its first token, which may overtake the plan."""
        if not self._context.wants_plan:
            return
        if start["status"] == 200:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PLAN_WAIT_S):
                    await self._context.is_planned.wait()
        headers = MutableHeaders(raw=start["headers"])
        for line in plan_lines(self._context.plans.values()):
            headers.append(PLAN_HEADER, line)


def error_response(status: int, kind: str, message: str, param: str | None = None) -> JSONResponse:
    """An error shaped as the OpenAI API shapes them."""
    error = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": error}, status_code=status)


def _is_stream(start: Message) -> bool:
    content_type = Headers(raw=start["headers"]).get("content-type", "")
    return bool(start["status"] == 200 and content_type.startswith("text/event-stream"))


def _as_plain_error(start: Message, event: bytes) -> tuple[Message, Message]:
    """Head and body of the error that ``event`` reports."""
    error = json.loads(event.split(b"\n", 1)[0].removeprefix(b"data: "))
    code = error["error"].get("code")
    body = json.dumps(error).encode()
    headers = MutableHeaders(raw=list(start["headers"]))
    headers["content-type"] = "application/json"
    headers["content-length"] = str(len(body))
    return (
        {
            **start,
            "status": code if isinstance(code, int) and 400 <= code < 600 else 500,
            "headers": headers.raw,
        },
        {"type": "http.response.body", "body": body, "more_body": False},
    )
