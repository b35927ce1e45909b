"""What a gateway shows of its pool and of recent requests: JSON values for its HTTP routes."""

from collections.abc import Iterable
from typing import Any

from services.gateway.actor import GatewayActor
from shared.schemas.message import Message


def pool_view(actor: GatewayActor) -> dict[str, Any]:
    """Registry records by kind, the last load of each instance, and whether requests can run."""
    registry = actor.registry
    return {
        "pool": actor.settings.pool,
        "gateway_id": actor.settings.id,
        "problem": actor.problem(),
        "in_flight": actor.num_in_flight,
        "instances": _dump(registry.instances.values()),
        "schedulers": _dump(registry.schedulers.values()),
        "coordinators": _dump(registry.coordinators.values()),
        "gateways": _dump(registry.gateways.values()),
        "loads": {key: load.model_dump(mode="json") for key, load in actor.loads.items()},
    }


def request_view(actor: GatewayActor, http_request_id: str) -> dict[str, Any] | None:
    """What became of an HTTP request; None while nothing of it is over."""
    requests, handoffs = actor.recent.find(http_request_id)
    if not requests:
        return None
    return {"requests": _dump(requests), "handoffs": _dump(handoffs)}


def _dump(messages: Iterable[Message]) -> list[dict[str, Any]]:
    return [message.model_dump(mode="json") for message in messages]
