"""Who is in the pool: a heartbeat that keeps one's own record alive, and a view of all records."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from pydantic import ValidationError

from shared.bus import Bus
from shared.errors import BusError
from shared.schemas.registry import (
    RECORD,
    CoordinatorRecord,
    GatewayRecord,
    InstanceRecord,
    Record,
    SchedulerRecord,
)
from shared.subjects import Subjects

log = logging.getLogger("dynaserve.registry")

RECORD_TTL_S = 5.0
HEARTBEAT_S = 1.0


def record_key(record: Record) -> str:
    """Key of a record in the bucket: kind and id."""
    return f"{record.kind}.{record.instance_id}"


class Heartbeat:
    """Keeps one record in the registry until stopped; then removes it."""

    def __init__(self, bus: Bus, subjects: Subjects, record: Record) -> None:
        self._bus = bus
        self._subjects = subjects
        self.record = record
        self._changed = asyncio.Event()

    def update(self, record: Record) -> None:
        """Publish a changed record at once instead of with the next beat."""
        self.record = record
        self._changed.set()

    async def run(self) -> None:
        """Beat until cancelled; a bus that is away is tried again with the next beat."""
        records = await self._bus.records(self._subjects.registry_bucket, RECORD_TTL_S)
        try:
            while True:
                self._changed.clear()
                try:
                    await records.put(record_key(self.record), self.record)
                except BusError as error:
                    log.warning("heartbeat of %s failed: %s", self.record.instance_id, error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_S):
                        await self._changed.wait()
        finally:
            with contextlib.suppress(BusError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await records.delete(record_key(self.record))


class PoolRegistry:
    """The pool as the registry shows it; ``on_change(old, new)`` is called for every difference."""

    def __init__(
        self,
        bus: Bus,
        subjects: Subjects,
        on_change: Callable[[Record | None, Record | None], None] | None = None,
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._on_change = on_change
        self._records: dict[str, Record] = {}
        self._loaded = asyncio.Event()
        self._changed = asyncio.Condition()
        self._heard_s = 0.0
        self.num_refused = 0

    @property
    def silent_s(self) -> float:
        """Since the bucket last spoke; records are renewed all the time while it is there."""
        return asyncio.get_running_loop().time() - self._heard_s

    @property
    def instances(self) -> dict[str, InstanceRecord]:
        return {r.instance_id: r for r in self._records.values() if isinstance(r, InstanceRecord)}

    @property
    def coordinators(self) -> dict[str, CoordinatorRecord]:
        return {
            r.instance_id: r for r in self._records.values() if isinstance(r, CoordinatorRecord)
        }

    @property
    def schedulers(self) -> dict[str, SchedulerRecord]:
        return {r.instance_id: r for r in self._records.values() if isinstance(r, SchedulerRecord)}

    @property
    def gateways(self) -> dict[str, GatewayRecord]:
        return {r.instance_id: r for r in self._records.values() if isinstance(r, GatewayRecord)}

    async def wait_until(self, condition: Callable[["PoolRegistry"], bool]) -> None:
        """Return as soon as ``condition`` holds; the caller sets the deadline."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._loaded.is_set() and condition(self))

    async def run(self) -> None:
        """Follow the registry until cancelled."""
        records = await self._bus.records(self._subjects.registry_bucket, RECORD_TTL_S)
        seen: set[str] = set()
        async for key, data in records.watch():
            self._heard_s = asyncio.get_running_loop().time()
            if not key:
                self._forget_all_but(seen)
                seen = set()
                self._loaded.set()
            elif data is None:
                self._set(key, None)
            else:
                seen.add(key)
                self._read(key, data)
            async with self._changed:
                self._changed.notify_all()

    def _read(self, key: str, data: bytes) -> None:
        try:
            self._set(key, RECORD.validate_json(data))
        except ValidationError as error:
            self.num_refused += 1
            log.warning("registry record %s refused (other version?): %s", key, error)

    def _forget_all_but(self, seen: set[str]) -> None:
        if self._loaded.is_set():
            for key in [k for k in self._records if k not in seen]:
                self._set(key, None)

    def _set(self, key: str, record: Record | None) -> None:
        old = self._records.get(key)
        if record is None:
            self._records.pop(key, None)
        else:
            self._records[key] = record
        if old != record and self._on_change is not None:
            self._on_change(old, record)
