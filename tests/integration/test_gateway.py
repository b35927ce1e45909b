"""A gateway process on a real socket and a real NATS server, before a scripted pool.

The `openai` client is the contract; what the pool does is told by each test.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dynaserve.demo_model import demo_model
from infra.nats import EmbeddedNats
from shared.bus_nats import NatsBus
from shared.schemas.events import RequestRecord
from shared.schemas.message import num_tokens, unpack_tokens
from shared.schemas.place import Place, Plan
from tests.unit.gateway.fake_pool import (
    FakePool,
    cut_at,
    instance_record,
    refusal,
    run_whole,
    stay_silent,
    token_at,
)

POOL = "gatewaytest"
MODEL = "demo"
START_TIMEOUT_S = 60.0
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Served:
    """A running gateway process."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def start_gateway(nats_url: str, log: Path, *flags: str) -> Served:
    port = free_port()
    command = [
        *(sys.executable, "-m", "services.gateway", str(demo_model()), "--nats", nats_url),
        *("--pool", POOL, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--served-model-name", MODEL, "--max-model-len", "256"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--place-patience-s", "0.5", "--enable-prompt-tokens-details", *flags),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment)
    served = Served(process, f"http://127.0.0.1:{port}", log)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{served.url}/version", timeout=1.0)
            return served
        time.sleep(0.1)
    end(process)
    raise AssertionError(f"the gateway did not start:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def served(nats_server: EmbeddedNats, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    gateway = start_gateway(nats_server.url, tmp_path_factory.mktemp("gateway") / "log")
    try:
        yield gateway
    finally:
        gateway.process.send_signal(signal.SIGTERM)
        try:
            gateway.process.wait(15)
        finally:
            end(gateway.process)


@pytest.fixture
async def pool(nats_server: EmbeddedNats, served: Served) -> AsyncIterator[FakePool]:
    """A scripted pool that the gateway sees."""
    bus = await NatsBus.connect(nats_server.url, "fake-pool")
    born_s = time.time()
    async with FakePool(bus, POOL) as made, httpx.AsyncClient(base_url=served.url) as http:
        for each in ("a", "b"):
            made.update(each, instance_record(each, started_s=born_s))
        async with asyncio.timeout(10):
            while not sees(await http.get("/dynaserve/pool"), born_s):
                await asyncio.sleep(0.02)
        yield made
    await bus.close()


def sees(answer: httpx.Response, born_s: float) -> bool:
    view = answer.json()
    return (
        view["problem"] is None
        and [each["started_s"] for each in view["instances"]] == [born_s, born_s]
        and view["in_flight"] == 0
    )


@pytest.fixture
async def client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    made = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    async with made:
        yield made


@pytest.fixture
async def http(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as made:
        yield made


async def record_of(pool: FakePool, place: Place) -> RequestRecord:
    """The record of one placed request; those of an earlier test may still come."""

    def found() -> list[RequestRecord]:
        return [r for r in pool.records if r.request_id == place.request.request_id]

    await pool.until(lambda: bool(found()))
    return found()[0]


def text_of(place: Place, count: int) -> str:
    first = num_tokens(place.request.prompt_token_ids)
    return "".join(chr(ord("a") + token_at(first + i) - 73) for i in range(count))


MESSAGES: Any = [{"role": "user", "content": "hello there"}]


async def test_a_completion_is_answered_and_carries_its_request_id(
    pool: FakePool, client: openai.AsyncOpenAI
) -> None:
    raw = await client.completions.with_raw_response.create(
        model=MODEL, prompt="hello", max_tokens=5, extra_headers={"X-Request-Id": "mine"}
    )
    completion = raw.parse()
    (place,) = pool.places
    assert raw.headers["x-request-id"] == "mine"
    assert completion.id == "cmpl-mine"
    assert completion.choices[0].text == text_of(place, 5)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 5
    assert completion.usage.prompt_tokens == num_tokens(place.request.prompt_token_ids)
    assert (await record_of(pool, place)).http_request_id == "mine"


async def test_a_streamed_chat_cut_in_two_is_one_stream_with_usage(
    pool: FakePool, client: openai.AsyncOpenAI
) -> None:
    pool.answer = lambda place: cut_at(num_tokens(place.request.prompt_token_ids) + 2)(place)
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == text_of(pool.places[0], 8)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


async def test_logprobs_pass_through(pool: FakePool, client: openai.AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2
    )
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [each.token for each in logprobs.content] == list(text_of(pool.places[0], 3))
    assert [each.logprob for each in logprobs.content] == pytest.approx([-0.1] * 3)
    assert [len(each.top_logprobs) for each in logprobs.content] == [2, 2, 2]


async def test_each_choice_is_placed_by_itself_with_a_seed_of_its_own(
    pool: FakePool, client: openai.AsyncOpenAI
) -> None:
    completion = await client.completions.create(model=MODEL, prompt="hi", max_tokens=4, n=3)
    assert sorted(choice.index for choice in completion.choices) == [0, 1, 2]
    assert len(pool.places) == 3
    seeds = {(place.request.sampling_params or {})["seed"] for place in pool.places}
    assert len(seeds) == 3


async def test_a_stop_string_ends_both_segments(pool: FakePool, client: openai.AsyncOpenAI) -> None:
    async def play(p: FakePool, place: Place, plan: Plan) -> None:
        first = num_tokens(place.request.prompt_token_ids)
        for i, letter in enumerate("abXYcd"):
            tokens = (
                [73 + ord(letter) - ord("a")] if letter.islower() else [65 if letter == "Y" else 64]
            )
            await p.emit(place, "a" if i < 3 else "b", first + i, tokens)

    pool.answer, pool.play = cut_at(2), play
    completion = await client.completions.create(
        model=MODEL, prompt="hello", max_tokens=50, stop=["XY"]
    )
    assert completion.choices[0].text == "ab"
    assert completion.choices[0].finish_reason == "stop"
    await pool.until(lambda: {c[0] for c in pool.cancels()} >= {"a", "b"})
    assert (await record_of(pool, pool.places[0])).outcome == "stop"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_disconnects_cancels_both_segments(
    pool: FakePool, http: httpx.AsyncClient, stream: bool
) -> None:
    async def play(p: FakePool, place: Place, plan: Plan) -> None:
        await p.emit(place, "a", num_tokens(place.request.prompt_token_ids), [75])

    pool.answer, pool.play = cut_at(1), play
    body = {"model": MODEL, "prompt": "hello", "max_tokens": 50, "stream": stream}

    async def ask() -> None:
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            async for _ in answer.aiter_lines():
                pass

    asking = asyncio.create_task(ask())
    await pool.until(lambda: bool(pool.places))
    if stream:
        await asyncio.sleep(0.2)  # the first token is on its way to the client
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await pool.until(lambda: {c[0] for c in pool.cancels()} >= {"a", "b"})
    assert (await record_of(pool, pool.places[0])).outcome == "abort"


async def test_a_lost_instance_is_not_noticed_by_the_client(
    pool: FakePool, client: openai.AsyncOpenAI
) -> None:
    async def play(p: FakePool, place: Place, plan: Plan) -> None:
        first = num_tokens(place.request.prompt_token_ids)
        if place.epoch == 1:
            await p.emit(place, "a", first, [token_at(first), token_at(first + 1)])
            await p.fail(place, "a", "engine_failed")
        else:
            await run_whole(p, place, plan)

    pool.play = play
    stream = await client.completions.create(model=MODEL, prompt="hi", max_tokens=6, stream=True)
    text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == text_of(pool.places[0], 6)
    assert len(unpack_tokens(pool.places[1].request.output_token_ids)) == 2


@pytest.mark.parametrize(("stream", "code"), [(True, "overloaded"), (False, "slo")])
async def test_a_refusal_has_its_status_even_on_a_stream(
    pool: FakePool, client: openai.AsyncOpenAI, stream: bool, code: str
) -> None:
    pool.answer = refusal(code, "no room for a second", retry_after_s=2.5)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.completions.create(model=MODEL, prompt="hi", max_tokens=6, stream=stream)
    assert caught.value.response.headers["retry-after"] == "3"
    assert "no room for a second" in caught.value.message

    pool.answer = refusal("invalid", "out of range", param="vllm_xargs.dynaserve_cut")
    with pytest.raises(openai.BadRequestError) as bad:
        await client.completions.create(model=MODEL, prompt="hi", max_tokens=6, stream=stream)
    assert bad.value.param == "vllm_xargs.dynaserve_cut"

    pool.answer = refusal("no_instance", "nobody there")
    with pytest.raises(openai.InternalServerError) as gone:
        await client.completions.create(model=MODEL, prompt="hi", max_tokens=6, stream=stream)
    assert gone.value.status_code == 503


async def test_one_failed_choice_ends_its_siblings(
    pool: FakePool, client: openai.AsyncOpenAI
) -> None:
    async def play(p: FakePool, place: Place, plan: Plan) -> None:
        if place.request.request_id.startswith("0_"):
            await p.fail(place, "a", "invalid", "cannot do this")

    pool.play = play
    with pytest.raises(openai.BadRequestError, match="cannot do this"):
        await client.completions.create(model=MODEL, prompt="hi", max_tokens=6, n=2)
    await pool.until(lambda: len({request_id for _, request_id, _ in pool.cancels()}) == 2)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"max_tokens": "many"}, 400, "body.max_tokens"),
        ({"prompt": "word " * 400}, 400, "input_tokens"),
        ({"prompt": list(range(9, 300))}, 400, "input_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"vllm_xargs": {"dynaserve_cut": "x"}}, 400, "vllm_xargs.dynaserve_cut"),
        ({"kv_transfer_params": {"a": 1}}, 400, "kv_transfer_params"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_bad_input_is_told_before_anything_is_placed(
    pool: FakePool,
    http: httpx.AsyncClient,
    body: dict[str, Any],
    status: int,
    param: str,
    stream: bool,
) -> None:
    asked = {"model": MODEL, "prompt": "hello", "max_tokens": 5, "stream": stream, **body}
    answer = await http.post("/v1/completions", json=asked)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert error["param"] == param
    assert pool.places == []


async def test_objectives_and_arguments_reach_the_scheduler(
    pool: FakePool, client: openai.AsyncOpenAI
) -> None:
    await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=4,
        extra_body={"vllm_xargs": {"dynaserve_cut": 3, "dynaserve_transport": "tcp"}},
        extra_headers={
            "x-slo-ttft-ms": "500",
            "x-slo-tpot-ms": "25",
            "x-slo-class": "gold",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        },
    )
    (place,) = pool.places
    assert (place.forced_cut, place.forced_transport) == (3, "tcp")
    slo = place.request.slo
    assert (slo.ttft_s, slo.tbt_s, slo.name) == (0.5, 0.025, "gold")
    assert (
        "extra_args" not in (place.request.sampling_params or {})
        or (place.request.sampling_params or {})["extra_args"] is None
    )
    assert place.request.trace_headers is not None


async def test_a_json_schema_and_tools_are_accepted(
    pool: FakePool, client: openai.AsyncOpenAI
) -> None:
    schema: Any = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=4,
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    )
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": schema}}
    await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4, tools=[tool])
    constrained, _free = pool.places
    sampling = constrained.request.sampling_params or {}
    assert sampling["structured_outputs"]["json"] is not None  # type: ignore[index,call-overload]


async def test_beam_search_works_step_by_step(pool: FakePool, http: httpx.AsyncClient) -> None:
    body = {
        "model": MODEL,
        "prompt": "hello",
        "max_tokens": 3,
        "n": 2,
        "use_beam_search": True,
    }
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200
    assert len(answer.json()["choices"]) == 2


async def test_multimodal_input_names_its_parameter(
    pool: FakePool, http: httpx.AsyncClient
) -> None:
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert pool.places == []


async def test_models_version_metrics_and_pool_are_there(
    pool: FakePool, client: openai.AsyncOpenAI, http: httpx.AsyncClient
) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await http.get("/version")).json()["version"].startswith("0.32.0")
    await client.completions.create(model=MODEL, prompt="hi", max_tokens=3)
    await record_of(pool, pool.places[0])
    series = (await http.get("/metrics")).text
    for name in (
        "vllm:time_to_first_token_seconds_count",
        "vllm:num_requests_running",
        "vllm:generation_tokens_total",
        "dynaserve_gateway_requests_total",
        "gen_ai_server_time_to_first_token_seconds_count",
    ):
        assert name in series
    view = (await http.get("/dynaserve/pool")).json()
    assert {each["instance_id"] for each in view["instances"]} == {"a", "b"}
    assert view["nats"].startswith("nats://127.0.0.1:")


async def test_a_pool_without_instances_is_not_healthy(
    served: Served, pool: FakePool, http: httpx.AsyncClient
) -> None:
    assert (await http.get("/health")).status_code == 200
    for each in ("a", "b"):
        await pool.leave(each)
    async with asyncio.timeout(10):
        while (answer := await http.get("/health")).status_code == 200:
            await asyncio.sleep(0.02)
    assert answer.status_code == 503
    assert "no ready instance" in answer.json()["error"]["message"]


async def test_sigterm_lets_a_running_stream_end(
    nats_server: EmbeddedNats, pool: FakePool, tmp_path: Path
) -> None:
    go_on = asyncio.Event()

    async def play(p: FakePool, place: Place, plan: Plan) -> None:
        first = num_tokens(place.request.prompt_token_ids)
        await p.emit(place, "a", first, [token_at(first)])
        await go_on.wait()
        await run_whole(p, place, plan)

    pool.play = play
    starting = asyncio.to_thread(
        start_gateway, nats_server.url, tmp_path / "log", "--id", "leaving"
    )
    leaving = await starting
    try:
        async with httpx.AsyncClient(base_url=leaving.url, timeout=30) as http:
            async with asyncio.timeout(10):
                while (await http.get("/health")).status_code != 200:
                    await asyncio.sleep(0.02)
            body = {"model": MODEL, "prompt": "hi", "max_tokens": 5, "stream": True}
            async with http.stream("POST", "/v1/completions", json=body) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                leaving.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.3)
                go_on.set()
                rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert await asyncio.to_thread(leaving.process.wait, 15) == 0
    finally:
        end(leaving.process)


async def test_a_silent_pool_does_not_hold_the_place_of_a_request_that_left(
    pool: FakePool, http: httpx.AsyncClient
) -> None:
    pool.play = stay_silent
    body = {"model": MODEL, "prompt": "hi", "max_tokens": 5}
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/v1/completions", json=body, timeout=0.5)
    async with asyncio.timeout(10):
        while (await http.get("/dynaserve/pool")).json()["in_flight"]:
            await asyncio.sleep(0.02)
