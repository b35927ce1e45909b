"""What lately happened to requests, for whoever asks by the id of the HTTP request. Pure."""

from collections import OrderedDict

from shared.bus import encode
from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffRecord

MAX_RECENT = 4096


class RecentRequests:
    """The newest ``max_recent`` request records of this gateway, and their handoffs' records.

    One HTTP request may be several requests of the pool (n > 1, several prompts). The record of a
    handoff may come before or after that of its request, and those of other gateways come as well;
    they are kept as long. Records are kept as JSON: as objects, thousands of them would make each
    full garbage collection a pause that every stream feels.
    """

    def __init__(self, max_recent: int = MAX_RECENT) -> None:
        self._max_recent = max_recent
        self._requests: OrderedDict[str, dict[str, bytes]] = OrderedDict()
        """HTTP request -> request -> record."""
        self._handoffs: OrderedDict[str, dict[int, bytes]] = OrderedDict()
        """Request -> epoch -> record."""

    def add_request(self, record: RequestRecord) -> None:
        known = self._requests.setdefault(record.http_request_id, {})
        known[record.request_id] = encode(record)
        while len(self._requests) > self._max_recent:
            self._requests.popitem(last=False)

    def add_handoff(self, record: HandoffRecord) -> None:
        self._handoffs.setdefault(record.request_id, {})[record.epoch] = encode(record)
        while len(self._handoffs) > self._max_recent:
            self._handoffs.popitem(last=False)

    def has_request(self, record: RequestRecord) -> bool:
        return record.request_id in self._requests.get(record.http_request_id, ())

    def has_handoff(self, record: HandoffRecord) -> bool:
        return record.epoch in self._handoffs.get(record.request_id, ())

    def find(self, http_request_id: str) -> tuple[list[RequestRecord], list[HandoffRecord]]:
        """Records of the requests that are over, and of the handoffs that are."""
        requests = self._requests.get(http_request_id, {})
        handoffs = [kept for name in requests for kept in self._handoffs.get(name, {}).values()]
        return (
            [RequestRecord.model_validate_json(kept) for kept in requests.values()],
            [HandoffRecord.model_validate_json(kept) for kept in handoffs],
        )
