"""The KV port of one worker: everything the connector needs of the data plane.

All calls may come from any thread and none waits for the network or the peer: the engine's thread
stages, expects, cancels and polls; the port's own threads (one for the port, two a link) move the
bytes. Whole blocks are moved, all layers of a chunk together. Nothing is sent before the receiver
holds its blocks, so a receiver buffers nothing; a sender buffers at most ``staging_bytes``.

Anybody who reaches the address and knows the geometry is believed: keep it on a private network.
"""

import atexit
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from services.kv_transfer.links.address import PortAddress
from services.kv_transfer.links.cuda_pages import device_identity, pages_of
from services.kv_transfer.links.events import News, PortEvents
from services.kv_transfer.links.half import LinkStats
from services.kv_transfer.links.incoming import Receiver
from services.kv_transfer.links.listener import Listener, listen_tcp, listen_unix
from services.kv_transfer.links.outgoing import Sender
from services.kv_transfer.links.outgoing_link import OutgoingState
from services.kv_transfer.links.port_memory import PortMemory
from services.kv_transfer.links.transports import TRANSPORTS, check_transports
from services.kv_transfer.links.tuning import LinkTuning


@dataclass(frozen=True)
class PortStats:
    links: tuple[LinkStats, ...]  # live ones
    bytes_sent: dict[str, int]  # confirmed, by transport, since the start
    bytes_received: dict[str, int]
    staging_bytes: int
    staging_bytes_in_use: int
    open_outgoing: int
    open_incoming: int
    fallbacks: int  # links that could not take their best transport


class KvPort:
    """One per worker (tensor-parallel rank)."""

    def __init__(
        self,
        layers: Sequence[torch.Tensor],
        *,
        geometry: str,
        staging_bytes: int,
        transports: Sequence[str],
        host_id: str,
        wake: Callable[[], None],
        host: str = "127.0.0.1",
        advertised_host: str | None = None,
        tuning: LinkTuning | None = None,
    ) -> None:
        """``layers``: uint8 [num_blocks, block_bytes] each. ``wake`` is called, on any thread,
        when poll() has news."""
        pages = pages_of(layers)
        check_transports(transports, pages.device)
        self._tuning = tuning or LinkTuning.on(pages.device)
        piece_bytes = self._tuning.device_piece_bytes
        self._memory = PortMemory(pages, transports, staging_bytes, piece_bytes)
        port_id = secrets.token_hex(8)
        sockets = self._listen(host, port_id, transports)
        self._local = PortAddress(
            port_id=port_id,
            host_id=host_id,
            host=advertised_host or host,
            tcp_port=sockets["tcp"].getsockname()[1] if "tcp" in sockets else 0,
            unix_name=_unix_name(port_id) if "unix" in sockets else "",
            transports=tuple(transports),
            device=device_identity(pages.device),
        )
        self._news = News(wake)
        self._receiver = Receiver(
            pages, self._memory.inbox, port_id, geometry, self._news, self._tuning, self._kick
        )
        self._sender = Sender(
            self._memory.stagings, self._local, geometry, self._news, self._tuning, self._kick
        )
        expire = (self._receiver.expire, self._sender.expire)
        self._listener = Listener(sockets, self._receiver.accept, expire, self._tuning)
        self._listener.start()
        self._closed = False
        # A daemon thread that is killed inside a tensor operation aborts the whole process.
        atexit.register(self.close)

    @staticmethod
    def _listen(host: str, port_id: str, transports: Sequence[str]) -> dict[str, socket.socket]:
        listen = {"tcp": lambda: listen_tcp(host), "unix": lambda: listen_unix(_unix_name(port_id))}
        kinds = {TRANSPORTS[name].listens_on for name in transports}
        return {kind: listen[kind]() for kind in kinds}

    def _kick(self, deadline: float) -> None:
        self._listener.kick(deadline)

    @property
    def address(self) -> str:
        return self._local.encode()

    @property
    def max_chunk_blocks(self) -> int:
        """More blocks never fit the staging memory at once."""
        return self._sender.max_blocks

    # -- sender

    def offer(
        self,
        handoff_id: str,
        epoch: int,
        num_blocks: int,
        peer_address: str,
        transport: str | None,
        deadline_s: float,
    ) -> None:
        """Tell the peer; ``ready`` comes when it holds its blocks. Repeating it does nothing."""
        self._sender.offer(handoff_id, epoch, num_blocks, peer_address, transport, deadline_s)

    def outgoing(self, handoff_id: str) -> OutgoingState | None:
        """None when it was never offered, or ended long ago."""
        return self._sender.outgoing(handoff_id)

    def stage(
        self, handoff_id: str, first_block: int, block_ids: Sequence[int], last: bool
    ) -> bool:
        """Copy blocks out, to be sent; once True the blocks may be reused (on a device: once the
        work queued so far is done). False: not ready, no room, or over; try again at a later step,
        ``staging_freed`` tells when there is room. A chunk may repeat blocks that went before."""
        return self._sender.stage(handoff_id, first_block, block_ids, last)

    def withdraw(self, handoff_id: str, reason: str) -> None:
        """End it here and tell the receiver; no event follows."""
        self._sender.withdraw(handoff_id, reason)

    # -- receiver

    def expect(
        self,
        handoff_id: str,
        epoch: int,
        first_block: int,
        block_ids: Sequence[int],
        deadline_s: float,
    ) -> None:
        """Blocks [first_block, first_block + len(block_ids)) of the handoff go into these. Until
        complete, failed or cancel() they belong to the port. Repeating it does nothing."""
        self._receiver.expect(handoff_id, epoch, first_block, block_ids, deadline_s)

    def cancel(self, handoff_id: str, reason: str = "cancelled") -> None:
        """End it here and tell the sender; no event follows. When this returns nothing is written
        into its blocks any more (it waits for at most ``piece_bytes`` to be copied)."""
        self._receiver.cancel(handoff_id, reason)

    # -- both

    def poll(self) -> PortEvents:
        return self._news.take()

    def stats(self) -> PortStats:
        return PortStats(
            links=(*self._sender.stats(), *self._receiver.stats()),
            bytes_sent=dict(self._sender.totals),
            bytes_received=dict(self._receiver.totals),
            staging_bytes=self._memory.capacity,
            staging_bytes_in_use=self._memory.in_use,
            open_outgoing=self._sender.num_open,
            open_incoming=self._receiver.num_open,
            fallbacks=self._sender.fallbacks,
        )

    def close(self) -> None:
        """Fail what is open, end the threads, give the memory back."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        join_until = time.monotonic() + self._tuning.join_timeout_s
        self._sender.close(join_until)
        self._receiver.close(join_until)
        self._listener.close()
        self._memory.close()


def _unix_name(port_id: str) -> str:
    return f"dynaserve-kv-{port_id}"
