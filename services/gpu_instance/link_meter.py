"""How fast KV leaves this instance, by peer, from what its own handoffs took. Pure and bounded."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from shared.kv_seam import HandoffSignal
from shared.schemas.segment import HandoffRef
from shared.schemas.telemetry import LinkLoad

MAX_PEERS = 16
MEMORY = 0.9
"""Weight of all earlier handoffs at each further one."""


@dataclass(slots=True)
class _Link:
    num_bytes: float = 0.0
    busy_s: float = 0.0


class LinkMeter:
    """Bytes over the time links were busy with them, over the last handoffs of each peer and
    transport; those used last are told."""

    def __init__(self) -> None:
        self._links: OrderedDict[tuple[str, str], _Link] = OrderedDict()

    def observe(self, signal: HandoffSignal, ref: HandoffRef) -> None:
        """Something happened to a handoff; all that this side sent of it is counted once."""
        if signal.side != "alpha" or signal.phase != "sent_all":
            return
        if signal.num_bytes <= 0 or signal.transfer_s <= 0.0:
            return
        key = (ref.peer_id, ref.transport or "unknown")
        link = self._links.setdefault(key, _Link())
        self._links.move_to_end(key)
        link.num_bytes = MEMORY * link.num_bytes + signal.num_bytes
        link.busy_s = MEMORY * link.busy_s + signal.transfer_s
        while len(self._links) > MAX_PEERS:
            self._links.popitem(last=False)

    def loads(self) -> list[LinkLoad]:
        return [
            LinkLoad(peer_id=peer_id, transport=transport, bytes_per_s=link.num_bytes / link.busy_s)
            for (peer_id, transport), link in self._links.items()
        ]
