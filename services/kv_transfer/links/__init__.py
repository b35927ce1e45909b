"""KV data plane: whole blocks from one worker's cache into another's."""

from services.kv_transfer.links.address import PortAddress, choose_transport, usable_transports
from services.kv_transfer.links.errors import (
    LinkBroken,
    LinkError,
    PathUnavailable,
    PeerRefused,
    TransportRefused,
)
from services.kv_transfer.links.events import (
    Arriving,
    Completed,
    Failed,
    PortEvents,
    Readied,
    Sent,
)
from services.kv_transfer.links.half import LinkStats
from services.kv_transfer.links.outgoing_link import OutgoingState
from services.kv_transfer.links.port import KvPort, PortStats
from services.kv_transfer.links.tuning import LinkTuning

__all__ = [
    "Arriving",
    "Completed",
    "Failed",
    "KvPort",
    "LinkBroken",
    "LinkError",
    "LinkStats",
    "LinkTuning",
    "OutgoingState",
    "PathUnavailable",
    "PeerRefused",
    "PortAddress",
    "PortEvents",
    "PortStats",
    "Readied",
    "Sent",
    "TransportRefused",
    "choose_transport",
    "usable_transports",
]
