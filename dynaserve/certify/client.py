"""The pool over HTTP, as a certification needs it."""

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import httpx
from pydantic import JsonValue

from dynaserve.certify.evidence import Evidence, read_evidence
from dynaserve.certify.groups import Body
from dynaserve.certify.outcome import Outcome
from shared.errors import NoInstance, RequestFailed
from shared.pairing import usable_transports
from shared.schemas.registry import InstanceRecord

REQUEST_TIMEOUT_S = 120.0
EVIDENCE_TIMEOUT_S = 5.0
EVIDENCE_POLL_S = 0.02
POOL_TIMEOUT_S = 20.0
SAMPLE_TEXT = (
    "A request may be cut at any token, and nobody who reads the answer can tell where. "
    "The first part runs on one machine and the second on another; what the first has learnt "
    "of the text goes over the wire in blocks, 64 tokens or 32 at a time. Why should it matter? "
    "Some prompts are long (a whole report: tables, figures, notes) and some answers are; "
    "red, green and blue boats wait at the harbour while the morning train leaves at 7:45."
)


@dataclass(frozen=True)
class PoolFacts:
    """What is served, and by what."""

    model: str
    block_size: int
    dtype: str
    transports: tuple[str, ...]
    """Those that join every two of its instances."""
    versions: dict[str, str]


def common_transports(instances: Sequence[InstanceRecord]) -> tuple[str, ...]:
    """The KV transports that join every ordered pair of ready instances, in one fixed order."""
    ready = [each for each in instances if each.state == "ready"]
    joining = [set[str](usable_transports(a, b)) for a, b in permutations(ready, 2)]
    return tuple(sorted(set.intersection(*joining))) if joining else ()


class PoolClient:
    """One gateway. Owns its connections; use it as an async context manager."""

    def __init__(self, url: str) -> None:
        self.url = url
        limits = httpx.Limits(max_connections=256)
        self._http = httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S, limits=limits)
        self.model = ""

    async def __aenter__(self) -> "PoolClient":
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._http.aclose()

    async def facts(self) -> PoolFacts:
        """Wait until the pool can cut; raises NoInstance when it cannot."""
        deadline_s = time.monotonic() + POOL_TIMEOUT_S
        while (lack := lacking(pool := await self._get("/dynaserve/pool"))) is not None:
            if time.monotonic() > deadline_s:
                raise NoInstance(f"the pool at {self.url} cannot cut requests: {lack}")
            await asyncio.sleep(EVIDENCE_POLL_S)
        self.model = (await self._get("/v1/models"))["data"][0]["id"]
        instances = [InstanceRecord.model_validate(each) for each in pool["instances"]]
        instance = instances[0]
        geometry = instance.geometry
        return PoolFacts(
            model=self.model,
            block_size=geometry.block_size,
            dtype=geometry.dtype,
            transports=common_transports(instances),
            versions={
                "model": geometry.model,
                "model_hash": geometry.model_hash,
                "dtype": geometry.dtype,
                "kv_layout": geometry.kv_layout,
                "vllm": geometry.vllm_version,
                "device": instance.device,
                "policy": ",".join(each["policy"] for each in pool["schedulers"]),
                "instances": str(len(pool["instances"])),
            },
        )

    async def vocabulary(self) -> list[int]:
        """Tokens that ordinary text is made of, whatever the model."""
        body: Body = {"model": self.model, "prompt": SAMPLE_TEXT, "add_special_tokens": False}
        answer = await self._post("/tokenize", body)
        return sorted(set(answer["tokens"]))

    async def complete(
        self, body: Mapping[str, JsonValue], request_id: str | None = None
    ) -> Outcome:
        """One completion. Raises RequestFailed with what the pool answered."""
        request_id = request_id or uuid.uuid4().hex
        answer = await self._post(
            "/v1/completions",
            {"model": self.model, "return_token_ids": True, **body},
            {"x-request-id": request_id},
        )
        return Outcome.from_choice(answer["choices"][0])

    async def evidence(self, request_id: str) -> Evidence | None:
        """The pool's records of a request; they come within about a second of its end."""
        deadline_s = time.monotonic() + EVIDENCE_TIMEOUT_S
        while True:
            response = await self._http.get(f"/dynaserve/requests/{request_id}")
            found = read_evidence(response.json()) if response.status_code == 200 else None
            if found is not None or time.monotonic() > deadline_s:
                return found
            await asyncio.sleep(EVIDENCE_POLL_S)

    async def _get(self, path: str) -> dict[str, Any]:
        return _content(await self._http.get(path))

    async def _post(
        self, path: str, body: Mapping[str, JsonValue], headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        return _content(await self._http.post(path, json=body, headers=headers))


def lacking(pool: Mapping[str, Any]) -> str | None:
    """What keeps a pool, as /dynaserve/pool shows it, from cutting requests."""
    ready = [each["geometry"] for each in pool["instances"] if each["state"] == "ready"]
    if pool["problem"]:
        return str(pool["problem"])
    if not any(ready.count(geometry) > 1 for geometry in ready):
        return "it has no two ready instances with equal KV geometry"
    if not pool["coordinators"]:
        return "no KV-transfer service is in it"
    return None


def _content(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != 200:
        raise RequestFailed(f"{response.request.url}: {response.status_code} {response.text[:300]}")
    content: dict[str, Any] = response.json()
    return content
