"""The bus seam: publish, request, subscribe, a registry and journals, over NATS or in memory.

Two implementations: ``shared.bus_nats.NatsBus`` and ``shared.bus_memory.MemoryBus``.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as it arrived. ``reply`` is None when no answer is wanted."""

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    reply: str | None = None


Handler = Callable[[Delivery], Awaitable[None]]


class Subscription(Protocol):
    """An open subscription."""

    async def close(self) -> None:
        """Stop delivering; what was delivered already is still handled."""


class Records(Protocol):
    """A bucket of small records that vanish when they are not written again within their TTL."""

    async def put(self, key: str, record: BaseModel) -> None:
        """Write or renew ``key``. Raises BusError when the bus is away."""

    async def delete(self, key: str) -> None:
        """Remove ``key``; removing what is not there is fine."""

    def watch(self) -> AsyncIterator[tuple[str, bytes | None]]:
        """All records now, then every change; None means deleted or expired.

        The key "" with None marks the end of the initial state; it comes again after the bus was
        away, and records not seen between two marks are gone.
        """


@dataclass(frozen=True, slots=True)
class JournalConfig:
    """Subjects whose messages are kept on the bus, and how much of them: the oldest goes first."""

    name: str
    subjects: tuple[str, ...]
    max_age_s: float
    max_bytes: int
    storage: Literal["memory", "file"] = "memory"


class Journal(Protocol):
    """Keeps what anybody publishes on its subjects; publishers neither wait for it nor fail."""

    async def ensure(self) -> None:
        """Make it, or bring its bounds up to date. Raises BusError.

        To be called again from time to time: one in memory is gone after a restart of the server.
        """

    def newest_first(self) -> AsyncIterator[Delivery]:
        """What is kept when this begins; nothing when it was never made. Raises BusError."""


class Bus(Protocol):
    """Messages between actors. All methods raise BusError (or a subclass) on failure."""

    async def publish(
        self,
        subject: str,
        message: BaseModel | bytes,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send without waiting for anyone. The caller bounds how much it publishes.

        ``bytes`` are a message that is encoded already, for hot paths.
        """

    async def request(
        self,
        subject: str,
        message: BaseModel,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Delivery:
        """Send and await one answer; NoResponder at once when nobody listens, else BusTimeout."""

    async def respond(self, delivery: Delivery, message: BaseModel | bytes) -> None:
        """Answer a request; does nothing when no answer is wanted."""

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        """Call ``handler`` for each message, one at a time and in order per subscription.

        With ``queue``, each message goes to one member of that group. A handler that waits
        must spawn a task.
        """

    async def records(self, bucket: str, ttl_s: float) -> Records:
        """Open (make if absent) a bucket of expiring records."""

    def journal(self, config: JournalConfig) -> Journal:
        """A handle on a journal; see ``Journal.ensure``."""

    async def close(self) -> None:
        """Flush what was published and disconnect."""


def encode(message: BaseModel | bytes) -> bytes:
    """Message -> JSON bytes, fields that are None left out; bytes are encoded already."""
    if isinstance(message, bytes):
        return message
    return message.__pydantic_serializer__.to_json(message, exclude_none=True)
