"""What a gateway shows of its pool and of recent requests: JSON values for its HTTP routes."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from services.gateway.actor import GatewayActor
from shared.explanation import explain


def pool_view(actor: GatewayActor) -> dict[str, Any]:
    """Registry records by kind, the last load of each instance, and whether requests can run."""
    registry = actor.registry
    return {
        "pool": actor.settings.pool,
        "nats": without_secrets(actor.settings.nats),
        "gateway_id": actor.settings.id,
        "problem": actor.problem(),
        "in_flight": actor.num_in_flight,
        "instances": _dump(registry.instances.values()),
        "schedulers": _dump(registry.schedulers.values()),
        "coordinators": _dump(registry.coordinators.values()),
        "gateways": _dump(registry.gateways.values()),
        "loads": {key: load.model_dump(mode="json") for key, load in actor.loads.items()},
    }


def without_secrets(url: str) -> str:
    """The URL without user, password or token."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


async def request_view(actor: GatewayActor, http_request_id: str) -> dict[str, Any] | None:
    """What became of an HTTP request, and why; None while nothing of it is over."""
    found = await actor.records.find(http_request_id)
    if not found.requests:
        return None
    return {
        "requests": _dump(found.requests),
        "handoffs": _dump(found.handoffs),
        "explanations": _dump(explain(record, found.handoffs) for record in found.requests),
    }


def _dump(messages: Iterable[BaseModel]) -> list[dict[str, Any]]:
    return [message.model_dump(mode="json") for message in messages]
