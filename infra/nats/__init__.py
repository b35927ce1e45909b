"""NATS as part of the product: a server started beside the services."""

from infra.nats.server import EmbeddedNats
from shared.errors import NatsServerError

__all__ = ["EmbeddedNats", "NatsServerError"]
