"""The staging memory of one port: only the kinds that its transports use."""

from collections.abc import Sequence

from services.kv_transfer.links.pages import KvPages
from services.kv_transfer.links.paths import MemoryKind
from services.kv_transfer.links.staging import Arena, DeviceArena, SharedArena, Staging
from services.kv_transfer.links.transports import TRANSPORTS


class PortMemory:
    """``staging_bytes`` of host memory for chunks on their way out; with device transports, as much
    on the device for the way out and again for the way in. (They never share: two ports full of
    outgoing chunks would wait for each other.)"""

    def __init__(
        self, pages: KvPages, transports: Sequence[str], staging_bytes: int, piece_bytes: int
    ) -> None:
        kinds = {TRANSPORTS[name].memory for name in transports}
        self.stagings: dict[MemoryKind, Staging] = {}
        self.inbox: Arena | None = None
        if "shared" in kinds:
            self.stagings["shared"] = Staging(pages, SharedArena(staging_bytes), piece_bytes)
        if "device" in kinds:
            outbox = DeviceArena(staging_bytes, pages.device)
            self.stagings["device"] = Staging(pages, outbox, piece_bytes)
            self.inbox = DeviceArena(staging_bytes, pages.device)

    @property
    def capacity(self) -> int:
        return sum(staging.arena.capacity for staging in self.stagings.values())

    @property
    def in_use(self) -> int:
        return sum(staging.arena.in_use for staging in self.stagings.values())

    def close(self) -> None:
        for staging in self.stagings.values():
            staging.arena.close()
        if self.inbox is not None:
            self.inbox.close()
