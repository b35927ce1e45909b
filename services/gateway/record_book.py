"""All records a gateway knows of: its own and other gateways', the newest in memory, the rest on
the bus."""

import asyncio
import logging

from services.gateway.live.view import LiveView
from services.gateway.recent import RecentRequests
from services.gateway.settings import GatewaySettings
from shared.archive import Found, RecordArchive, names_of
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import BusError
from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffRecord
from shared.subjects import Subjects

log = logging.getLogger("dynaserve.gateway.records")

CHECK_S = 10.0
"""A server that was restarted has forgotten the stream; it is made anew within this time."""

SEARCH_TIMEOUT_S = 10.0
MAX_READ_AT_START = 2000


class RecordBook:
    """Feeds the live view; answers for requests that ended before this gateway began."""

    def __init__(self, bus: Bus, settings: GatewaySettings, live: LiveView, clock: Clock) -> None:
        self._recent = RecentRequests()
        self._live = live
        self._clock = clock
        self._searching = asyncio.Lock()
        self._archive = RecordArchive(
            bus,
            Subjects(settings.pool),
            max_age_s=settings.records_max_age_s,
            max_mib=settings.records_max_mib,
            storage=settings.records_storage,
        )

    def add_request(self, record: RequestRecord) -> None:
        self._recent.add_request(record)
        self._live.add_request(record)

    def add_handoff(self, record: HandoffRecord) -> None:
        self._recent.add_handoff(record)
        self._live.add_handoff(record, self._clock.unix_s())

    async def find(self, wanted: str) -> Found:
        """Records of an HTTP request: from memory, else from what the bus keeps."""
        for name in names_of(wanted):
            requests, handoffs = self._recent.find(name)
            if requests:
                return Found(requests, handoffs)
        try:
            async with asyncio.timeout(SEARCH_TIMEOUT_S), self._searching:
                return await self._archive.find(wanted)
        except (BusError, TimeoutError) as error:
            log.warning("cannot look for %r in what the bus keeps: %r", wanted, error)
            return Found()

    async def keep(self) -> None:
        """Until cancelled: read what was before us, and see to it that what comes is kept."""
        has_read = is_troubled = False
        while True:
            try:
                await self._archive.ensure()
                if not has_read:
                    await self._read_past()
                has_read, is_troubled = True, False
            except BusError as error:
                if not is_troubled:
                    log.warning("records of requests are not kept: %s", error)
                is_troubled = True
            await self._clock.sleep(CHECK_S)

    async def _read_past(self) -> None:
        past: list[RequestRecord | HandoffRecord] = []
        async for record in self._archive.newest_first():
            past.append(record)
            if len(past) == MAX_READ_AT_START:
                break
        for record in reversed(past):
            self._take_in(record)

    def _take_in(self, record: RequestRecord | HandoffRecord) -> None:
        """What came while the past was read is known already."""
        if isinstance(record, HandoffRecord):
            if not self._recent.has_handoff(record):
                self.add_handoff(record)
        elif not self._recent.has_request(record):
            self.add_request(record)
