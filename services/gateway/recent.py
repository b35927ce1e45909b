"""What lately happened to requests, for whoever asks by the id of the HTTP request. Pure."""

from collections import OrderedDict

from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffRecord

MAX_RECENT = 4096


class RecentRequests:
    """The newest ``max_recent`` request records of this gateway, and their handoffs' records.

    One HTTP request may be several requests of the pool (n > 1, several prompts). The record of a
    handoff may come before or after that of its request, and those of other gateways come as well;
    they are kept as long.
    """

    def __init__(self, max_recent: int = MAX_RECENT) -> None:
        self._max_recent = max_recent
        self._requests: OrderedDict[str, list[RequestRecord]] = OrderedDict()
        self._handoffs: OrderedDict[str, list[HandoffRecord]] = OrderedDict()

    def add_request(self, record: RequestRecord) -> None:
        self._requests.setdefault(record.http_request_id, []).append(record)
        while len(self._requests) > self._max_recent:
            self._requests.popitem(last=False)

    def add_handoff(self, record: HandoffRecord) -> None:
        self._handoffs.setdefault(record.request_id, []).append(record)
        while len(self._handoffs) > self._max_recent:
            self._handoffs.popitem(last=False)

    def has_request(self, record: RequestRecord) -> bool:
        known = self._requests.get(record.http_request_id, ())
        return any(each.request_id == record.request_id for each in known)

    def has_handoff(self, record: HandoffRecord) -> bool:
        known = self._handoffs.get(record.request_id, ())
        return any(each.epoch == record.epoch for each in known)

    def find(self, http_request_id: str) -> tuple[list[RequestRecord], list[HandoffRecord]]:
        """Records of the requests that are over, and of the handoffs that are."""
        requests = self._requests.get(http_request_id, [])
        handoffs = [h for r in requests for h in self._handoffs.get(r.request_id, [])]
        return requests, handoffs
