"""The layer around vLLM's application."""

import asyncio
import json
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.http_context import current
from services.gateway.middleware import PoolMiddleware
from services.gateway.settings import GatewaySettings
from shared.schemas.place import Plan

SETTINGS = GatewaySettings()


class Call:
    """One request through the middleware, and what came back."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = PoolMiddleware(app, SETTINGS)
        self.sent: list[Message] = []

    async def __call__(self, *headers: tuple[str, str]) -> "Call":
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "headers": [(k.encode(), v.encode()) for k, v in headers],
        }

        async def receive() -> Message:
            await asyncio.Event().wait()  # a client that stays
            raise AssertionError

        async def send(message: Message) -> None:
            self.sent.append(message)

        await self.app(scope, receive, send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


def stream_of(*events: str) -> StreamingResponse:
    async def generate() -> Any:
        for event in events:
            yield event

    return StreamingResponse(generate(), media_type="text/event-stream")


async def test_the_request_id_is_echoed_and_reaches_the_application() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        context = current.get()
        assert context is not None
        seen.extend([context.request_id, dict(scope["headers"])[b"x-request-id"].decode()])
        await Response("fine")(scope, receive, send)

    call = await Call(app)(("x-request-id", "mine"))
    assert seen == ["mine", "mine"]
    assert call.headers["x-request-id"] == "mine"


async def test_without_an_id_one_is_made_and_is_the_same_everywhere() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"])[b"x-request-id"].decode()
        await Response(given)(scope, receive, send)

    call = await Call(app)()
    assert call.body.decode() == call.headers["x-request-id"]


async def test_a_stream_passes_event_by_event() -> None:
    call = await Call(stream_of("data: 1\n\n", "data: 2\n\n"))()
    assert call.status == 200
    assert call.body == b"data: 1\n\ndata: 2\n\n"
    assert [m["type"] for m in call.sent].count("http.response.body") == 3


async def test_a_stream_that_begins_with_an_error_becomes_that_error() -> None:
    error = {"error": {"message": "full", "type": "Too Many Requests", "param": None, "code": 429}}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        context = current.get()
        assert context is not None
        context.retry_after_s = 2.3
        events = stream_of(f"data: {json.dumps(error)}\n\n", "data: [DONE]\n\n")
        await events(scope, receive, send)

    call = await Call(app)()
    assert call.status == 429
    assert json.loads(call.body) == error
    assert call.headers["content-type"] == "application/json"
    assert call.headers["content-length"] == str(len(call.body))
    assert call.headers["retry-after"] == "3"


async def test_an_error_after_the_first_token_stays_an_event() -> None:
    call = await Call(stream_of("data: 1\n\n", 'data: {"error": {"code": 500}}\n\n'))()
    assert call.status == 200
    assert call.body.endswith(b'data: {"error": {"code": 500}}\n\n')


@pytest.mark.parametrize("code", ["whatever", None, 200])
async def test_an_error_without_a_proper_code_is_a_500(code: Any) -> None:
    event = "data: " + json.dumps({"error": {"code": code}}) + "\n\n"
    assert (await Call(stream_of(event))()).status == 500


@pytest.mark.parametrize(("status", "expected"), [(503, "1"), (429, "1"), (400, None)])
async def test_who_is_sent_away_for_now_is_told_when_to_come_back(
    status: int, expected: str | None
) -> None:
    call = await Call(JSONResponse({}, status_code=status))()
    assert call.headers.get("retry-after") == expected


async def test_a_malformed_objective_is_a_400_that_names_the_header() -> None:
    call = await Call(Response("never"))(("x-slo-ttft-ms", "soon"))
    assert call.status == 400
    assert json.loads(call.body)["error"]["param"] == "x-slo-ttft-ms"


async def test_what_is_not_http_passes_untouched() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def nothing() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None: ...

    await PoolMiddleware(app, SETTINGS)({"type": "lifespan"}, nothing, send)
    assert seen == [{"type": "lifespan"}]


PLAN = Plan(
    request_id="r",
    epoch=1,
    scheduler_id="s",
    policy="dynaserve",
    alpha_id="a",
    beta_id="b",
    cut=7,
    reason="b is → free",
)


def planned(answer: Response, *plans: Plan) -> ASGIApp:
    """An application whose requests get their plans after the head was made."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        context = current.get()
        assert context is not None

        async def send_late(message: Message) -> None:
            if message["type"] == "http.response.start" and context.wants_plan:
                is_stream = isinstance(answer, StreamingResponse)
                if is_stream:
                    await send(message)
                context.plans.update({str(n): plan for n, plan in enumerate(plans)})
                asyncio.get_running_loop().call_soon(context.is_planned.set)
                if is_stream:
                    return
            await send(message)

        await answer(scope, receive, send_late)

    return app


@pytest.mark.parametrize("answer", [JSONResponse({}), stream_of("data: 1\n\n")])
async def test_who_asks_is_told_the_plan_with_the_head(answer: Response) -> None:
    call = await Call(planned(answer, PLAN))(("x-dynaserve-plan", "1"))
    assert json.loads(call.headers["x-dynaserve-plan"]) == {
        "alpha": "a",
        "beta": "b",
        "cut": 7,
        "reason": "b is → free",
    }


async def test_several_plans_are_several_lines_that_join_to_an_array() -> None:
    call = await Call(planned(JSONResponse({}), *[PLAN] * 20))(("x-dynaserve-plan", "1"))
    lines = [v.decode() for k, v in call.sent[0]["headers"] if k == b"x-dynaserve-plan"]
    assert len(json.loads(f"[{', '.join(lines)}]")) == 16


async def test_who_does_not_ask_is_not_told() -> None:
    for headers in ([], [("x-dynaserve-plan", "0")]):
        call = await Call(planned(JSONResponse({}), PLAN))(*headers)
        assert "x-dynaserve-plan" not in call.headers


async def test_an_unclear_wish_for_the_plan_is_a_400() -> None:
    call = await Call(JSONResponse({}))(("x-dynaserve-plan", "maybe"))
    assert call.status == 400
    assert json.loads(call.body)["error"]["param"] == "x-dynaserve-plan"
