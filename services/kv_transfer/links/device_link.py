"""Transports ``nccl`` and ``gloo``: chunks go from device memory to device memory.

The link's socket carries the messages; each chunk's header goes first, then both ends post its
transfer on one of a few pairs, in turn. The sender posts only what is gathered, and no more than
the receiver's window, so that neither device spins on a transfer whose other end is not there yet.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
from torch.distributed import PrefixStore, TCPStore

from services.kv_transfer.links.address import PortAddress
from services.kv_transfer.links.errors import LinkBroken, PathUnavailable
from services.kv_transfer.links.frames import Chunk, FrameSocket, Rendezvous
from services.kv_transfer.links.handshake import expect
from services.kv_transfer.links.pages import KvPages, Span
from services.kv_transfer.links.pair import RECEIVER, SENDER, Flight, MakePair, Pair
from services.kv_transfer.links.paths import MemoryKind, ReceivingEnd, Socket
from services.kv_transfer.links.staging import Arena, Slab
from services.kv_transfer.links.tcp import dial_tcp
from services.kv_transfer.links.tuning import LinkTuning

LOOK_AGAIN_S = 0.05  # a wait that the end of the link should cut short
GRACE_S = 1.0  # from the peer's last word in the handshake to our own end of it
PROBE_BYTES = 64
Made = TypeVar("Made")


class DeviceSendPath:
    """Keeps what is under way within the receiver's window."""

    def __init__(self, pairs: list[Pair], window_bytes: int) -> None:
        self._pairs = pairs
        self._window = window_bytes
        self._count = 0
        self._flights: dict[int, tuple[int, Flight]] = {}  # by seq, with their bytes
        self._changed = threading.Condition()

    def send(self, wire: FrameSocket, chunk: Chunk, slab: Slab) -> None:
        if chunk.nbytes > self._window:
            raise LinkBroken(f"chunk of {chunk.nbytes} bytes; the receiver takes {self._window}")
        self._wait_for_room(wire, chunk.nbytes)
        wire.send(chunk)
        flight = self._next_pair().send(slab.tensor())
        with self._changed:
            self._flights[chunk.seq] = (chunk.nbytes, flight)

    def _wait_for_room(self, wire: FrameSocket, nbytes: int) -> None:
        with self._changed:
            while sum(n for n, _ in self._flights.values()) + nbytes > self._window:
                self._changed.wait(LOOK_AGAIN_S)
                if wire.is_down:
                    raise LinkBroken("the link ended")

    def _next_pair(self) -> Pair:
        self._count += 1
        return self._pairs[self._count % len(self._pairs)]

    def confirmed(self, chunk: Chunk) -> None:
        with self._changed:
            self._flights.pop(chunk.seq, None)
            self._changed.notify()

    def abort(self) -> None:
        for pair in self._pairs:
            pair.abort()

    def close(self) -> None:
        self._flights.clear()
        self._pairs.clear()


class DeviceReceivePath:
    posts_ahead = True

    def __init__(self, pairs: list[Pair], pages: KvPages, inbox: Arena, patience_s: float) -> None:
        self._pairs = pairs
        self._pages = pages
        self._inbox = inbox
        self._patience_s = patience_s
        self._count = 0
        self._posted: set[Slab] = set()
        self._is_quiet = False

    def receive(self, wire: FrameSocket, chunk: Chunk) -> Iterator[tuple[Span, torch.Tensor]]:
        slab = self._room(wire, chunk.nbytes)
        self._posted.add(slab)
        self._count += 1
        flight = self._pairs[self._count % len(self._pairs)].receive(slab.tensor())
        return self._land(wire, chunk, slab, flight)

    def _room(self, wire: FrameSocket, nbytes: int) -> Slab:
        while (slab := self._inbox.reserve(nbytes, LOOK_AGAIN_S)) is None:
            if wire.is_down:
                raise LinkBroken("the link ended")
        return slab

    def _land(
        self, wire: FrameSocket, chunk: Chunk, slab: Slab, flight: Flight
    ) -> Iterator[tuple[Span, torch.Tensor]]:
        flight.wait(self._patience_s, lambda: wire.is_down)
        num_layers, block_bytes = self._pages.num_layers, self._pages.block_bytes
        rows = slab.tensor().view(num_layers, chunk.num_blocks, block_bytes)
        yield Span(0, num_layers, 0, chunk.num_blocks), rows
        self._posted.discard(slab)
        slab.free()

    def abort(self) -> None:
        self._is_quiet = all([pair.abort() for pair in self._pairs])

    def close(self) -> None:
        """Memory into which a device may still write is never used again."""
        self._pairs.clear()
        if self._is_quiet:
            for slab in self._posted:
                slab.free()


class DeviceTransport:
    listens_on: Socket = "tcp"
    memory: MemoryKind = "device"
    builds = True

    def __init__(self, name: str, make_pair: MakePair) -> None:
        self.name = name
        self._make_pair = make_pair

    def dial(self, address: PortAddress, timeout_s: float) -> socket.socket:
        return dial_tcp(address, timeout_s)

    def attach_sender(self, wire: FrameSocket, arena: Arena, tuning: LinkTuning) -> DeviceSendPath:
        meet = expect(wire, Rendezvous)

        def join() -> list[Pair]:
            timeout = timedelta(seconds=tuning.build_timeout_s)
            store = TCPStore(wire.peer_host, meet.tcp_port, 2, False, timeout)
            return self._join(store, SENDER, meet.num_lanes, arena, tuning.build_timeout_s)

        pairs = _in_time(join, wire, tuning.build_timeout_s, f"{self.name} cannot be built")
        return DeviceSendPath(pairs, meet.window_bytes)

    def attach_receiver(self, wire: FrameSocket, end: ReceivingEnd) -> DeviceReceivePath:
        assert end.inbox is not None
        inbox, tuning = end.inbox, end.tuning
        door = socket.create_server((wire.host, 0), family=_family(wire.host))
        port, fd = door.getsockname()[1], door.detach()
        timeout = timedelta(seconds=tuning.build_timeout_s)
        store = TCPStore(
            wire.host, port, 2, True, timeout, wait_for_workers=False, master_listen_fd=fd
        )
        wire.send(Rendezvous(port, tuning.num_lanes, inbox.max_payload))
        pairs = _in_time(
            lambda: self._join(store, RECEIVER, tuning.num_lanes, inbox, tuning.build_timeout_s),
            wire,
            tuning.build_timeout_s,
            f"{self.name} cannot be built",
        )
        return DeviceReceivePath(pairs, end.pages, inbox, tuning.stall_timeout_s)

    def _join(
        self, store: TCPStore, rank: int, num_lanes: int, arena: Arena, timeout_s: float
    ) -> list[Pair]:
        """Communicators come up with their first transfer, so one is made."""
        device = arena.bytes.device
        pairs: list[Pair] = []
        for lane in range(num_lanes):
            pair = self._make_pair(PrefixStore(f"lane {lane}", store), rank, device, timeout_s)
            probe = torch.zeros(PROBE_BYTES, dtype=torch.uint8, device=device)
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
            flight = pair.send(probe) if rank == SENDER else pair.receive(probe)
            flight.wait(timeout_s, lambda: False)
            pairs.append(pair)
        return pairs


def _in_time(make: Callable[[], Made], wire: FrameSocket, timeout_s: float, what: str) -> Made:
    """``make()`` on a thread of its own, as nothing can interrupt it. Raises PathUnavailable when
    it fails, takes too long, or the peer has its last word first."""
    made: list[Made] = []
    problem: list[Exception] = []
    done = threading.Event()

    def run() -> None:
        try:
            made.append(make())
        except Exception as error:  # the thread's edge
            problem.append(error)
        done.set()

    threading.Thread(target=run, name="kv-build", daemon=True).start()
    left_s = timeout_s
    while not done.wait(LOOK_AGAIN_S) and left_s > 0:
        left_s = min(left_s - LOOK_AGAIN_S, GRACE_S) if wire.has_news() else left_s - LOOK_AGAIN_S
    if made:
        return made[0]
    why = str(problem[0]).splitlines()[0] if problem else f"not done in {timeout_s:g} s"
    if not problem and wire.has_news():
        why = "the peer gave it up"
    raise PathUnavailable(f"{what}: {why}") from (problem[0] if problem else None)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
