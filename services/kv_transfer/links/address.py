"""Where a KV port can be reached, and which transport joins two ports."""

from collections.abc import Callable

import msgspec

from services.kv_transfer.links.errors import TransportRefused


class PortAddress(msgspec.Struct, frozen=True):
    """Published in the registry. ``port_id`` is new at every start, so that a peer restarted on
    the same host and port is not taken for the one that died."""

    port_id: str
    host_id: str
    host: str
    tcp_port: int
    unix_name: str  # abstract socket; "" without shared memory
    transports: tuple[str, ...]
    device: str = ""  # identity of the GPU that holds the cache; "" for host memory

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> "PortAddress":
        return msgspec.json.decode(text, type=cls)


def _same_host(sender: PortAddress, receiver: PortAddress) -> bool:
    return sender.host_id == receiver.host_id


def _two_gpus(sender: PortAddress, receiver: PortAddress) -> bool:
    return bool(sender.device and receiver.device) and sender.device != receiver.device


def _no_gpu(sender: PortAddress, receiver: PortAddress) -> bool:
    return not sender.device and not receiver.device


def _anywhere(sender: PortAddress, receiver: PortAddress) -> bool:
    return True


# Best first. Each rule says whether the transport can join the two, given that both have it.
REACH: dict[str, Callable[[PortAddress, PortAddress], bool]] = {
    "nccl": _two_gpus,
    "gloo": _no_gpu,
    "shm": _same_host,
    "tcp": _anywhere,
}


def usable_transports(sender: PortAddress, receiver: PortAddress) -> list[str]:
    """Transports that can join the two, best first."""
    return [
        name
        for name, reaches in REACH.items()
        if name in sender.transports and name in receiver.transports and reaches(sender, receiver)
    ]


def transports_from(
    sender: PortAddress, receiver: PortAddress, preferred: str | None = None
) -> list[str]:
    """What to try, one after the other: from ``preferred``, else from the best on."""
    usable = usable_transports(sender, receiver)
    return usable[usable.index(choose_transport(sender, receiver, preferred)) :]


def choose_transport(sender: PortAddress, receiver: PortAddress, forced: str | None = None) -> str:
    """The best transport that can join the two, or ``forced`` if it can."""
    usable = usable_transports(sender, receiver)
    if forced is not None and forced not in usable:
        raise TransportRefused(
            f"transport {forced!r} cannot join host {sender.host_id} {list(sender.transports)} "
            f"and host {receiver.host_id} {list(receiver.transports)}; usable: {usable}"
        )
    if not usable:
        raise TransportRefused(
            f"no transport joins {list(sender.transports)} and {list(receiver.transports)}"
        )
    return forced or usable[0]
