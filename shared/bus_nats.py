"""The bus over NATS: core subjects for messages, a JetStream bucket in memory for records."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription
from nats.js.api import KeyValueConfig, StorageType
from nats.js.kv import KeyValue
from pydantic import BaseModel

from shared import bus_metrics
from shared.bus import Bus, Delivery, Handler, JournalConfig, Records, Subscription, encode
from shared.errors import BusError, BusTimeout, NoResponder
from shared.journal_nats import NatsJournal

log = logging.getLogger("dynaserve.bus")

CONNECT_TIMEOUT_S = 5.0
RECORD_TIMEOUT_S = 2.0
OPEN_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 1.0
RECONNECT_BUFFER_BYTES = 8 * 2**20
"""What may wait for a server that is away; beyond it publish fails instead of growing."""


class _Subscribed:
    def __init__(self, subscription: NatsSubscription) -> None:
        self._subscription = subscription

    async def close(self) -> None:
        """Plain ``unsubscribe`` would drop what was delivered and not yet handled."""
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._subscription.drain()  # type: ignore[no-untyped-call]


class NatsRecords:
    """A JetStream key-value bucket in memory whose expiry reaches watchers (limit markers).

    The bucket lives in the server's memory: after a server restart the next ``put`` makes it anew,
    and watchers start over.
    """

    def __init__(self, client: Client, bucket: str, ttl_s: float) -> None:
        self._client = client
        self._bucket = bucket
        self._ttl_s = ttl_s
        self._kv: KeyValue | None = None

    async def open(self) -> KeyValue:
        """The bucket, made if absent. Raises BusError, e.g. when JetStream is off."""
        if self._kv is None:
            config = KeyValueConfig(
                bucket=self._bucket,
                history=1,
                ttl=self._ttl_s,
                storage=StorageType.MEMORY,
                limit_marker_ttl=max(1.0, self._ttl_s),
            )
            try:
                context = self._client.jetstream(timeout=RECORD_TIMEOUT_S)
                self._kv = await context.create_key_value(config)
            except (nats.errors.TimeoutError, TimeoutError) as error:
                raise BusTimeout(f"$JS (bucket {self._bucket})", RECORD_TIMEOUT_S) from error
            except nats.errors.Error as error:
                raise BusError(
                    f"cannot open the registry bucket {self._bucket}: {error!r}; "
                    "is JetStream on (nats-server -js)?"
                ) from error
        return self._kv

    async def put(self, key: str, record: BaseModel) -> None:
        kv = await self.open()
        try:
            await kv.put(key, encode(record))
        except (nats.errors.Error, TimeoutError) as error:
            self._kv = None
            raise BusError(f"cannot write {key} to {self._bucket}: {error!r}") from error

    async def delete(self, key: str) -> None:
        kv = await self.open()
        try:
            await kv.delete(key)
        except (nats.errors.Error, TimeoutError) as error:
            self._kv = None
            raise BusError(f"cannot delete {key} from {self._bucket}: {error!r}") from error

    async def watch(self) -> AsyncIterator[tuple[str, bytes | None]]:
        while True:
            try:
                async for change in self._watch_once():
                    yield change
            except (BusError, nats.errors.Error, TimeoutError) as error:
                log.warning("registry watch interrupted: %r; trying again", error)
                self._kv = None
                await asyncio.sleep(0.2)

    async def _watch_once(self) -> AsyncIterator[tuple[str, bytes | None]]:
        """One watch; ends after a silence longer than the TTL, as records are always renewed."""
        kv = await self.open()
        watcher = await kv.watchall()
        try:
            while True:
                try:
                    # Not wait_for: in Python 3.11 it swallows a cancel that meets an update.
                    async with asyncio.timeout(2 * self._ttl_s):
                        entry = await watcher._updates.get()
                except TimeoutError:
                    self._kv = None
                    return
                if entry is None:
                    yield "", None
                elif not isinstance(entry, KeyValue.Entry):
                    return
                elif entry.operation in ("DEL", "PURGE"):
                    yield entry.key, None
                else:
                    yield entry.key, entry.value or b""
        finally:
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await watcher.stop()  # type: ignore[no-untyped-call]


class NatsBus(Bus):
    """``Bus`` on a NATS server. Reconnects for ever; what is published meanwhile is bounded."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @classmethod
    async def connect(cls, url: str, name: str) -> "NatsBus":
        """Connect to ``url``; raises BusError within CONNECT_TIMEOUT_S when nobody answers."""
        client = Client()
        for tally in (bus_metrics.slow_consumers, bus_metrics.bus_errors, bus_metrics.reconnects):
            tally.add(0)

        async def on_error(error: Exception) -> None:
            _count_error(error)
            log.warning("bus: %r", error)

        async def on_reconnect() -> None:
            bus_metrics.reconnects.add(1)
            log.warning("bus: connected again to %s", client.connected_url)

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await client.connect(
                    url,
                    name=name,
                    error_cb=on_error,
                    reconnected_cb=on_reconnect,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    connect_timeout=2,
                    pending_size=RECONNECT_BUFFER_BYTES,
                )
        except (nats.errors.Error, OSError, TimeoutError) as error:
            with contextlib.suppress(nats.errors.Error, OSError):
                await client.close()
            raise BusError(f"no NATS server answers at {url}: {error!r}") from error
        return cls(client)

    async def publish(
        self,
        subject: str,
        message: BaseModel | bytes,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        try:
            await self._client.publish(
                subject, encode(message), headers=dict(headers) if headers else None
            )
        except nats.errors.Error as error:
            raise BusError(f"cannot publish on {subject}: {error!r}") from error

    async def request(
        self,
        subject: str,
        message: BaseModel,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Delivery:
        try:
            answer = await self._client.request(
                subject,
                encode(message),
                timeout=timeout_s,
                headers=dict(headers) if headers else None,
            )
        except nats.errors.NoRespondersError as error:
            raise NoResponder(subject) from error
        except (nats.errors.TimeoutError, TimeoutError) as error:
            raise BusTimeout(subject, timeout_s) from error
        except nats.errors.Error as error:
            raise BusError(f"cannot ask on {subject}: {error!r}") from error
        return _delivery(answer)

    async def respond(self, delivery: Delivery, message: BaseModel | bytes) -> None:
        if delivery.reply is not None:
            await self.publish(delivery.reply, message)

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        async def on_message(message: Msg) -> None:
            await handler(_delivery(message))

        try:
            subscription = await self._client.subscribe(subject, queue=queue, cb=on_message)
            await self._client.flush()
        except nats.errors.Error as error:
            raise BusError(f"cannot listen on {subject}: {error!r}") from error
        return _Subscribed(subscription)

    async def records(self, bucket: str, ttl_s: float) -> Records:
        """A server that is slow to answer (or a host that is busy starting) is asked again."""
        records = NatsRecords(self._client, bucket, ttl_s)
        deadline_s = asyncio.get_running_loop().time() + OPEN_TIMEOUT_S
        while True:
            try:
                await records.open()
                return records
            except BusTimeout:
                if asyncio.get_running_loop().time() > deadline_s:
                    raise

    def journal(self, config: JournalConfig) -> NatsJournal:
        return NatsJournal(self._client, config)

    async def close(self) -> None:
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await self._client.flush(timeout=2)
        with contextlib.suppress(nats.errors.Error):
            await self._client.close()


def _count_error(error: Exception) -> None:
    if isinstance(error, nats.errors.SlowConsumerError):
        bus_metrics.slow_consumers.add(1)
    else:
        bus_metrics.bus_errors.add(1)


def _delivery(message: Msg) -> Delivery:
    return Delivery(message.subject, message.data, message.headers or {}, message.reply or None)
