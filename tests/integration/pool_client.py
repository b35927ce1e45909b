"""What tests of a whole pool ask of it beside the OpenAI API."""

import asyncio
from typing import Any

import httpx

from dynaserve.accounts import Accounts, accounts_of
from dynaserve.local_pool.background import BackgroundPool
from shared.bus_nats import NatsBus
from shared.subjects import Subjects

MODEL = "demo"
PROMPT = list(range(300, 370))
EVIDENCE_S = 5.0


def cut_at(position: int, transport: str | None = None) -> dict[str, Any]:
    """``extra_body`` of a request that insists on its cut."""
    own: dict[str, Any] = {"dynaserve_cut": position}
    if transport is not None:
        own["dynaserve_transport"] = transport
    return {"vllm_xargs": own, "return_token_ids": True, "ignore_eos": True}


UNCUT: dict[str, Any] = {
    "vllm_xargs": {"dynaserve_cut": "never"},
    "return_token_ids": True,
    "ignore_eos": True,
}


class Watcher:
    """A test's own eyes on a pool: its bus and the gateway's records. Made by ``watch``."""

    def __init__(self, pool: BackgroundPool, bus: NatsBus, http: httpx.AsyncClient) -> None:
        self.pool = pool
        self.bus = bus
        self.http = http
        self.subjects = Subjects(pool.pool)

    async def accounts(self) -> Accounts:
        return await accounts_of(self.bus, self.subjects, self.pool.instance_ids)

    async def records(self, request_id: str, count: int = 1) -> list[dict[str, Any]]:
        """Records of an HTTP request's ``count`` choices, once all are there."""
        async with asyncio.timeout(EVIDENCE_S):
            while True:
                response = await self.http.get(f"/dynaserve/requests/{request_id}")
                found = response.json().get("requests", [])
                if len(found) >= count:
                    return list(found)
                await asyncio.sleep(0.02)

    async def plans(self, request_id: str, count: int = 1) -> list[dict[str, Any]]:
        return [record["plan"] for record in await self.records(request_id, count)]
