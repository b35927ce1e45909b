"""Which coordinator to tell of a handoff, also for a while after its segment has ended."""

from collections import OrderedDict

from shared.schemas.segment import Segment

MAX_ROUTES = 16_384


class HandoffRoutes:
    """handoff -> coordinator, the newest ``max_routes`` of them."""

    def __init__(self, max_routes: int = MAX_ROUTES) -> None:
        self._coordinators: OrderedDict[str, str] = OrderedDict()
        self._max_routes = max_routes

    def add(self, segment: Segment) -> None:
        if segment.handoff is None:
            return
        self._coordinators[segment.handoff.handoff_id] = segment.handoff.coordinator_id
        while len(self._coordinators) > self._max_routes:
            self._coordinators.popitem(last=False)

    def coordinator(self, handoff_id: str) -> str | None:
        return self._coordinators.get(handoff_id)
