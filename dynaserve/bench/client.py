"""One request over HTTP: sends a prompt of token ids, times what streams back."""

import asyncio
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from dynaserve.bench.observation import Observation
from dynaserve.bench.overhead import OverheadMeter
from dynaserve.bench.prompts import Prompts
from dynaserve.bench.slo import SloClass, Slos
from dynaserve.bench.sse import CompletionStream
from dynaserve.sim.traces import SimRequest

KEEPALIVE_S = 2.0
"""Shorter than a server's (uvicorn: 5 s), so that a request never meets a closing connection."""
CONNECT_TIMEOUT_S = 30.0
DETAIL_LENGTH = 200
CLASS_LENGTH = 32


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How requests are sent: to ``urls`` in turn. ``run_id`` makes their ids unique there."""

    urls: tuple[str, ...]
    model: str
    vocab_size: int
    run_id: str
    prompt_seed: int = 0
    timeout_s: float = 600.0
    slos: Slos = field(default_factory=Slos)
    headers: Mapping[str, str] = field(default_factory=dict)


def open_session(settings: ClientSettings) -> aiohttp.ClientSession:
    """Connections without limit: the schedule alone decides what is under way."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        timeout=aiohttp.ClientTimeout(total=settings.timeout_s, connect=CONNECT_TIMEOUT_S),
        headers=dict(settings.headers),
        auto_decompress=False,
    )


class CompletionClient:
    """Sends requests on one session. Never raises for what the server does: the outcome says it."""

    def __init__(
        self, session: aiohttp.ClientSession, settings: ClientSettings, meter: OverheadMeter
    ) -> None:
        self._session = session
        self._settings = settings
        self._meter = meter
        self._urls = itertools.cycle(settings.urls)
        self._prompts = Prompts(settings.vocab_size, settings.prompt_seed)

    async def send(self, seen: Observation) -> None:
        """Send ``seen.request`` now and fill ``seen`` as the answer arrives."""
        loop = asyncio.get_running_loop()
        body = self.body(seen.request)
        headers = self._headers(seen.request)
        seen.sent_s = loop.time()
        try:
            async with self._session.post(
                f"{next(self._urls)}/v1/completions", data=body, headers=headers
            ) as response:
                if response.status == 200:
                    await self._stream(response, seen)
                else:
                    await _refused(response, seen)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            seen.outcome, seen.detail = "failed", f"{type(error).__name__}: {error}"[:DETAIL_LENGTH]
        finally:
            seen.done_s = loop.time()

    def body(self, request: SimRequest) -> bytes:
        """Exactly as many tokens as the trace says, in and out."""
        return (
            f'{{"model":{json.dumps(self._settings.model)},'
            f'"prompt":[{self._prompts.ids(request)}],"max_tokens":{request.output_tokens},'
            '"ignore_eos":true,"temperature":0,"stream":true,'
            '"stream_options":{"include_usage":true,"continuous_usage_stats":true}}'
        ).encode()

    def _headers(self, request: SimRequest) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "X-Request-Id": f"{self._settings.run_id}-{request.request_id}",
        }
        slo = self._settings.slos.of(request.traffic_class)
        return headers | slo_headers(slo, request)

    async def _stream(self, response: aiohttp.ClientResponse, seen: Observation) -> None:
        now = asyncio.get_running_loop().time
        stream = CompletionStream()
        while data := await response.content.readany():
            at_s = now()
            if tokens := stream.feed(data):
                seen.saw_tokens(at_s, tokens)
            self._meter.chunks += 1
            self._meter.handling_s += now() - at_s
        finish(stream, seen)


def slo_headers(slo: SloClass, request: SimRequest) -> dict[str, str]:
    """The objectives, for servers that schedule by them; others ignore the headers."""
    headers = {}
    ttft_s = slo.ttft_bound_s(request.prompt_tokens)
    if ttft_s < float("inf"):
        headers["x-slo-ttft-ms"] = f"{1e3 * ttft_s:.3f}"
    if slo.tbt_s < float("inf"):
        headers["x-slo-tpot-ms"] = f"{1e3 * slo.tbt_s:.3f}"
    if headers:
        headers["x-slo-class"] = request.traffic_class[:CLASS_LENGTH]
    return headers


def finish(stream: CompletionStream, seen: Observation) -> None:
    """The outcome of a stream that came to its end: ok only if every token asked for was made."""
    seen.exact = stream.exact
    made = stream.tokens
    if stream.usage is not None:
        seen.prompt_tokens = stream.usage.prompt_tokens
        seen.cached_tokens = stream.usage.cached_tokens
        made = stream.usage.completion_tokens
    if stream.error is not None:
        seen.outcome, seen.detail = "failed", f"error in stream: {stream.error}"[:DETAIL_LENGTH]
    elif not stream.ended:
        seen.outcome, seen.detail = "failed", "stream ended without [DONE]"
    elif not seen.chunk_s:
        seen.outcome, seen.detail = "failed", "no tokens"
    elif stream.usage is not None and made != seen.request.output_tokens:
        seen.outcome, seen.detail = "failed", "another number of tokens than asked for"
    elif seen.prompt_tokens not in (None, seen.request.prompt_tokens):
        seen.outcome, seen.detail = "failed", "the server counts another prompt length"
    else:
        seen.outcome = "ok"


async def _refused(response: aiohttp.ClientResponse, seen: Observation) -> None:
    text = (await response.content.read(4096)).decode(errors="replace")
    seen.detail = f"HTTP {response.status}: {text}"[:DETAIL_LENGTH]
    seen.outcome = "refused" if response.status == 429 else "failed"
    try:
        seen.retry_after_s = float(response.headers.get("Retry-After", ""))
    except ValueError:
        seen.retry_after_s = None
