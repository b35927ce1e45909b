"""A journal as a JetStream stream."""

import contextlib
import logging
from collections.abc import AsyncIterator

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    StorageType,
    StreamConfig,
)

from shared.bus import Delivery, JournalConfig
from shared.errors import BusError

log = logging.getLogger("dynaserve.journal")

TIMEOUT_S = 2.0
WINDOW = 512
"""Messages read at once, going back."""


class NatsJournal:
    """The stream keeps what is published by anybody; acknowledgements are not asked for."""

    def __init__(self, client: Client, config: JournalConfig) -> None:
        self._stream = client.jetstream(timeout=TIMEOUT_S)
        self._config = config
        self._warned = False

    async def ensure(self) -> None:
        try:
            await self._ensure()
        except (nats.errors.Error, TimeoutError) as error:
            raise BusError(f"cannot open the stream {self._config.name}: {error!r}") from error

    async def _ensure(self) -> None:
        wanted = self._stream_config()
        try:
            found = (await self._stream.stream_info(self._config.name)).config
        except nats.js.errors.NotFoundError:
            await self._stream.add_stream(wanted)
            return
        if found.storage != wanted.storage:
            self._warn(found.storage)
            wanted = wanted.evolve(storage=found.storage)
        if _bounds(found) != _bounds(wanted):
            await self._stream.update_stream(wanted)

    def _stream_config(self) -> StreamConfig:
        config = self._config
        return StreamConfig(
            name=config.name,
            subjects=list(config.subjects),
            max_age=config.max_age_s,
            max_bytes=config.max_bytes,
            storage=StorageType.FILE if config.storage == "file" else StorageType.MEMORY,
            discard=DiscardPolicy.OLD,
            allow_direct=True,
        )

    def _warn(self, storage: StorageType | None) -> None:
        """A stream's storage cannot be changed; say so once."""
        if not self._warned:
            log.warning(
                "the stream %s is kept in %s; delete it to have it kept in %s",
                *(self._config.name, storage, self._config.storage),
            )
        self._warned = True

    async def newest_first(self) -> AsyncIterator[Delivery]:
        try:
            state = (await self._stream.stream_info(self._config.name)).state
            last, first = state.last_seq, state.first_seq
            while last >= first and state.messages:
                start = max(first, last - WINDOW + 1)
                for delivery in reversed(await self._window(start, last)):
                    yield delivery
                last = start - 1
        except nats.js.errors.NotFoundError:
            return
        except (nats.errors.Error, TimeoutError) as error:
            raise BusError(f"cannot read the stream {self._config.name}: {error!r}") from error

    async def _window(self, start: int, last: int) -> list[Delivery]:
        """Messages ``start`` to ``last``, as far as they are still kept."""
        consumer = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=10.0,
            mem_storage=True,
        )
        subscription = await self._stream.pull_subscribe(
            "", stream=self._config.name, config=consumer
        )
        try:
            return await self._fetch(subscription, start, last)
        finally:
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await subscription.unsubscribe()

    async def _fetch(
        self, subscription: JetStreamContext.PullSubscription, start: int, last: int
    ) -> list[Delivery]:
        found: list[Delivery] = []
        while start <= last:
            try:
                messages = await subscription.fetch(last - start + 1, timeout=TIMEOUT_S)
            except (nats.errors.TimeoutError, TimeoutError):
                break  # the rest of the window is not kept any more
            for message in messages:
                start = message.metadata.sequence.stream + 1
                if start <= last + 1:
                    found.append(Delivery(message.subject, message.data, message.headers or {}))
        return found


def _bounds(config: StreamConfig) -> tuple[object, ...]:
    return config.max_age, config.max_bytes, sorted(config.subjects or [])
