"""Which handoff goes where: whom to tell of it, also for a while after its segment has ended."""

from collections import OrderedDict

from shared.schemas.segment import HandoffRef, Segment

MAX_ROUTES = 16_384


class HandoffRoutes:
    """handoff -> its coordinator, peer and transport, the newest ``max_routes`` of them."""

    def __init__(self, max_routes: int = MAX_ROUTES) -> None:
        self._refs: OrderedDict[str, HandoffRef] = OrderedDict()
        self._max_routes = max_routes

    def add(self, segment: Segment) -> None:
        if segment.handoff is None:
            return
        self._refs[segment.handoff.handoff_id] = segment.handoff
        while len(self._refs) > self._max_routes:
            self._refs.popitem(last=False)

    def ref(self, handoff_id: str) -> HandoffRef | None:
        return self._refs.get(handoff_id)
