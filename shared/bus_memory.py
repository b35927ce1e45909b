"""The bus inside one process: for simulation and for tests of actors without a server."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel

from shared.bus import Bus, Delivery, Handler, JournalConfig, Records, Subscription, encode
from shared.errors import BusError, BusTimeout, NoResponder
from shared.journal_memory import MemoryJournal

MAX_PENDING = 65_536
"""Bound of each subscriber's queue; beyond it messages are dropped and counted, as in NATS."""


@dataclass(eq=False)
class MemorySubscription:
    """One subscriber: a bounded queue and the task that empties it."""

    pattern: str
    handler: Handler
    queue_group: str
    owner: dict["MemorySubscription", None]
    pending: asyncio.Queue[Delivery] = field(
        default_factory=lambda: asyncio.Queue(maxsize=MAX_PENDING)
    )
    dropped: int = 0
    task: asyncio.Task[None] | None = None

    async def pump(self) -> None:
        while True:
            await self.handler(await self.pending.get())

    def offer(self, delivery: Delivery) -> None:
        try:
            self.pending.put_nowait(delivery)
        except asyncio.QueueFull:
            self.dropped += 1

    async def close(self) -> None:
        self.owner.pop(self, None)
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)


class MemoryRecords:
    """Expiring records; expiry is by the event loop's clock."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._data: dict[str, bytes] = {}
        self._expiry: dict[str, asyncio.TimerHandle] = {}
        self._watchers: list[asyncio.Queue[tuple[str, bytes | None]]] = []

    async def put(self, key: str, record: BaseModel) -> None:
        if key in self._expiry:
            self._expiry[key].cancel()
        loop = asyncio.get_running_loop()
        self._expiry[key] = loop.call_later(self._ttl_s, self._drop, key)
        self._data[key] = encode(record)
        self._tell(key, self._data[key])

    async def delete(self, key: str) -> None:
        self._drop(key)

    async def watch(self) -> AsyncIterator[tuple[str, bytes | None]]:
        changes: asyncio.Queue[tuple[str, bytes | None]] = asyncio.Queue(maxsize=MAX_PENDING)
        initial = list(self._data.items())
        self._watchers.append(changes)
        try:
            for key, data in initial:
                yield key, data
            yield "", None
            while True:
                yield await changes.get()
        finally:
            self._watchers.remove(changes)

    def _drop(self, key: str) -> None:
        timer = self._expiry.pop(key, None)
        if timer is not None:
            timer.cancel()
        if self._data.pop(key, None) is not None:
            self._tell(key, None)

    def _tell(self, key: str, data: bytes | None) -> None:
        for watcher in self._watchers:
            watcher.put_nowait((key, data))


class MemoryBus(Bus):
    """Subjects, queue groups, wildcards, requests and records as NATS has them, in memory."""

    def __init__(self) -> None:
        self._subscriptions: dict[MemorySubscription, None] = {}
        self._buckets: dict[str, MemoryRecords] = {}
        self._journals: dict[str, MemoryJournal] = {}
        self._inbox = itertools.count()
        self._round_robin: defaultdict[tuple[str, str], itertools.count[int]] = defaultdict(
            itertools.count
        )
        self._closed = False

    async def publish(
        self,
        subject: str,
        message: BaseModel | bytes,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._deliver(Delivery(subject, encode(message), dict(headers or {})))
        await asyncio.sleep(0)

    async def request(
        self,
        subject: str,
        message: BaseModel,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Delivery:
        answer: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        inbox = f"_INBOX.{next(self._inbox)}"

        async def settle(delivery: Delivery) -> None:
            if not answer.done():
                answer.set_result(delivery)

        subscription = await self.subscribe(inbox, settle)
        try:
            sent = Delivery(subject, encode(message), dict(headers or {}), reply=inbox)
            if not self._deliver(sent):
                raise NoResponder(subject)
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError as error:
            raise BusTimeout(subject, timeout_s) from error
        finally:
            await subscription.close()

    async def respond(self, delivery: Delivery, message: BaseModel | bytes) -> None:
        if delivery.reply is not None:
            await self.publish(delivery.reply, message)

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        subscription = MemorySubscription(subject, handler, queue, self._subscriptions)
        subscription.task = asyncio.create_task(subscription.pump(), name=f"bus:{subject}")
        self._subscriptions[subscription] = None
        return subscription

    async def records(self, bucket: str, ttl_s: float) -> Records:
        return self._buckets.setdefault(bucket, MemoryRecords(ttl_s))

    def journal(self, config: JournalConfig) -> MemoryJournal:
        return self._journals.setdefault(config.name, MemoryJournal(self, config))

    async def close(self) -> None:
        self._closed = True
        for subscription in list(self._subscriptions):
            await subscription.close()

    def _deliver(self, delivery: Delivery) -> bool:
        if self._closed:
            raise BusError("the bus is closed")
        groups: dict[tuple[str, str], list[MemorySubscription]] = defaultdict(list)
        matched = False
        for subscription in self._subscriptions:
            if not subject_matches(subscription.pattern, delivery.subject):
                continue
            matched = True
            if subscription.queue_group:
                groups[subscription.pattern, subscription.queue_group].append(subscription)
            else:
                subscription.offer(delivery)
        for group, members in groups.items():
            members[next(self._round_robin[group]) % len(members)].offer(delivery)
        return matched


def subject_matches(pattern: str, subject: str) -> bool:
    """NATS matching: ``*`` is one token, a trailing ``>`` one or more."""
    wanted, given = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given) > index
        if index >= len(given) or token not in ("*", given[index]):
            return False
    return len(wanted) == len(given)
