"""Records of requests and handoffs that the bus keeps, so that any gateway can answer for them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from shared.bus import Bus, Delivery, JournalConfig
from shared.schemas.events import REQUEST_RECORD, RequestRecord
from shared.schemas.handoff import HandoffRecord
from shared.subjects import Subjects

HANDOFF_RECORD: TypeAdapter[HandoffRecord] = TypeAdapter(HandoffRecord)
DEFAULT_MAX_AGE_S = 6 * 3600.0
DEFAULT_MAX_MIB = 64

LOOK_ON = 4096
"""Messages looked at behind a find: records of one HTTP request end close to each other."""


@dataclass(slots=True)
class Found:
    """Records of one HTTP request, the oldest first."""

    requests: list[RequestRecord] = field(default_factory=list)
    handoffs: list[HandoffRecord] = field(default_factory=list)


def names_of(wanted: str) -> list[str]:
    """The ids of HTTP requests that ``wanted`` may mean: a body's id is the header's, prefixed."""
    bare = wanted.removeprefix("chatcmpl-").removeprefix("cmpl-")
    return [wanted] if bare == wanted else [wanted, bare]


class RecordArchive:
    """The journal of one pool's records. Nothing is written here: instances publish as always."""

    def __init__(
        self,
        bus: Bus,
        subjects: Subjects,
        max_age_s: float = DEFAULT_MAX_AGE_S,
        max_mib: int = DEFAULT_MAX_MIB,
        storage: Literal["memory", "file"] = "memory",
    ) -> None:
        self._subjects = subjects
        self._journal = bus.journal(
            JournalConfig(
                name=subjects.records_stream,
                subjects=(subjects.request_events, subjects.handoff_events),
                max_age_s=max_age_s,
                max_bytes=max_mib * 2**20,
                storage=storage,
            )
        )

    async def ensure(self) -> None:
        """See ``Journal.ensure``."""
        await self._journal.ensure()

    async def newest_first(self) -> AsyncIterator[RequestRecord | HandoffRecord]:
        """Everything readable that is kept."""
        async for delivery in self._journal.newest_first():
            record = self._read(delivery)
            if record is not None:
                yield record

    async def find(self, wanted: str) -> Found:
        """What is kept of an HTTP request, by its X-Request-Id, its body's id or the pool's id.

        Goes back through all that is kept; only what mentions the id is parsed.
        """
        names = names_of(wanted)
        needle = names[-1].encode()
        found, left = Found(), LOOK_ON
        async for delivery in self._journal.newest_first():
            if found.requests:
                left -= 1
                if left == 0:
                    break
            if needle in delivery.data:
                self._sort_in(found, self._read(delivery), names)
        ids = {record.request_id for record in found.requests}
        found.handoffs = [handoff for handoff in found.handoffs if handoff.request_id in ids]
        found.requests.reverse()
        found.handoffs.reverse()
        return found

    def _sort_in(
        self, found: Found, record: RequestRecord | HandoffRecord | None, names: list[str]
    ) -> None:
        if isinstance(record, HandoffRecord):
            found.handoffs.append(record)
        elif record is not None and {record.http_request_id, record.request_id} & {*names}:
            found.requests.append(record)

    def _read(self, delivery: Delivery) -> RequestRecord | HandoffRecord | None:
        """None for what another version wrote."""
        try:
            if delivery.subject == self._subjects.request_events:
                return REQUEST_RECORD.validate_json(delivery.data)
            return HANDOFF_RECORD.validate_json(delivery.data)
        except ValidationError:
            return None
