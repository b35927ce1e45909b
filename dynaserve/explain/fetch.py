"""Where the records of a request come from: a gateway, or straight from the bus."""

from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from shared.archive import Found, RecordArchive
from shared.bus_nats import NatsBus
from shared.errors import DynaServeError
from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffRecord
from shared.subjects import Subjects

TIMEOUT_S = 15.0


class NoRecord(DynaServeError):
    """Nothing is known of the request, or nothing can be asked."""


class GatewayAnswer(BaseModel):
    """The part of the gateway's answer that says all; the rest can be worked out from it."""

    model_config = ConfigDict(extra="ignore")

    requests: list[RequestRecord]
    handoffs: list[HandoffRecord]


async def from_gateway(url: str, request_id: str) -> Found:
    """Ask the gateway at ``url``; raises NoRecord."""
    path = f"{url.rstrip('/')}/dynaserve/requests/{quote(request_id, safe='')}"
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            answer = await client.get(path)
    except httpx.HTTPError as error:
        raise NoRecord(
            f"no gateway answers at {url} ({error!r}); give --url, or --nats to ask the bus"
        ) from error
    if answer.status_code == 404:
        raise NoRecord(_unknown(request_id))
    try:
        found = GatewayAnswer.model_validate_json(answer.raise_for_status().content)
    except (httpx.HTTPStatusError, ValidationError) as error:
        raise NoRecord(f"{url} does not answer as a gateway: {error}") from error
    return Found(found.requests, found.handoffs)


async def from_bus(nats_url: str, pool: str, request_id: str) -> Found:
    """Look through what the bus keeps, without any gateway; raises NoRecord and BusError."""
    bus = await NatsBus.connect(nats_url, "dynaserve.explain")
    try:
        found = await RecordArchive(bus, Subjects(pool)).find(request_id)
    finally:
        await bus.close()
    if not found.requests:
        raise NoRecord(_unknown(request_id))
    return found


def _unknown(request_id: str) -> str:
    return (
        f"no record of {request_id!r}: it is not over, or its record is no longer kept "
        "(give the X-Request-Id of the answer, or the id in its body)"
    )
