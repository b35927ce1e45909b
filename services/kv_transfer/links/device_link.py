"""Transports ``nccl`` and ``gloo``: chunks go from device memory to device memory.

The link's socket carries the messages; each chunk's header goes first, then both ends post its
pieces, runs of layers, so that gather, wire and scatter overlap. The sender posts only what is
gathered, and no more than the receiver's window, so that neither device spins on a transfer whose
other end is not there yet. One thread must not do Python's work for too small pieces: at 64 MiB a
chunk of its own each the interpreter, not the wire, is the limit (measured: 159 GB/s).
"""

import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
from torch.distributed import TCPStore

from services.kv_transfer.links.address import PortAddress
from services.kv_transfer.links.errors import LinkBroken, PathUnavailable
from services.kv_transfer.links.frames import Chunk, FrameSocket, Rendezvous
from services.kv_transfer.links.handshake import expect
from services.kv_transfer.links.pages import KvPages, Span, layer_runs
from services.kv_transfer.links.pair import (
    RECEIVER,
    SENDER,
    Flight,
    MakePair,
    Pair,
    making_or_breaking,
)
from services.kv_transfer.links.paths import MemoryKind, ReceivingEnd, Socket
from services.kv_transfer.links.staging import Arena, Slab, Staging
from services.kv_transfer.links.tcp import dial_tcp
from services.kv_transfer.links.tuning import LinkTuning

LOOK_AGAIN_S = 0.05  # a wait that the end of the link should cut short
GRACE_S = 1.0  # from the peer's last word in the handshake to our own end of it
PROBE_BYTES = 64
Made = TypeVar("Made")


class DeviceSendPath:
    """Keeps what is under way within the receiver's window."""

    def __init__(self, pair: Pair, window_bytes: int, pages: KvPages) -> None:
        self._pair = pair
        self._window = window_bytes
        self._pages = pages
        self._flights: dict[int, list[Flight]] = {}  # by seq; they hold what they send from
        self._under_way = 0  # bytes
        self._changed = threading.Condition()

    def send(self, wire: FrameSocket, chunk: Chunk, slab: Slab) -> None:
        if chunk.nbytes > self._window:
            raise LinkBroken(f"chunk of {chunk.nbytes} bytes; the receiver takes {self._window}")
        self._wait_for_room(wire, chunk.nbytes)
        flights = self._flights[chunk.seq] = []
        wire.send(chunk)
        for i, (_, piece) in enumerate(pieces(self._pages, chunk, slab)):
            if i < len(slab.fences):
                slab.fences[i]()
            flights.append(self._pair.send(piece))

    def _wait_for_room(self, wire: FrameSocket, nbytes: int) -> None:
        with self._changed:
            while self._under_way + nbytes > self._window:
                self._changed.wait(LOOK_AGAIN_S)
                if wire.is_down:
                    raise LinkBroken("the link ended")
            self._under_way += nbytes

    def confirmed(self, chunk: Chunk) -> None:
        with self._changed:
            self._flights.pop(chunk.seq, None)
            self._under_way -= chunk.nbytes
            self._changed.notify()

    def abort(self) -> None:
        self._pair.abort()

    def close(self) -> None:
        self._flights.clear()


class DeviceReceivePath:
    posts_ahead = True

    def __init__(self, pair: Pair, pages: KvPages, inbox: Arena, patience_s: float) -> None:
        self._pair = pair
        self._pages = pages
        self._inbox = inbox
        self._patience_s = patience_s
        self._posted: set[Slab] = set()
        self._is_quiet = False

    def receive(self, wire: FrameSocket, chunk: Chunk) -> Iterator[tuple[Span, torch.Tensor]]:
        if chunk.piece_bytes < 1 or chunk.nbytes > self._inbox.max_payload:
            raise LinkBroken(f"chunk of {chunk.nbytes} bytes in pieces of {chunk.piece_bytes}")
        slab = self._room(wire, chunk.nbytes)
        self._posted.add(slab)
        arriving = [
            (span, piece, self._pair.receive(piece))
            for span, piece in pieces(self._pages, chunk, slab)
        ]
        return self._land(wire, slab, arriving)

    def _room(self, wire: FrameSocket, nbytes: int) -> Slab:
        while (slab := self._inbox.reserve(nbytes, LOOK_AGAIN_S)) is None:
            if wire.is_down:
                raise LinkBroken("the link ended")
        return slab

    def _land(
        self, wire: FrameSocket, slab: Slab, arriving: list[tuple[Span, torch.Tensor, Flight]]
    ) -> Iterator[tuple[Span, torch.Tensor]]:
        for span, piece, flight in arriving:
            flight.wait(self._patience_s, lambda: wire.is_down)
            yield span, piece.view(span.num_layers, span.num_rows, self._pages.block_bytes)
        self._posted.discard(slab)
        slab.free()

    def abort(self) -> None:
        self._is_quiet = self._pair.abort()

    def close(self) -> None:
        """Memory into which a device may still write is never used again."""
        if self._is_quiet:
            for slab in self._posted:
                slab.free()


def pieces(pages: KvPages, chunk: Chunk, slab: Slab) -> Iterator[tuple[Span, torch.Tensor]]:
    """The chunk's runs of layers, each with its bytes; the same at both ends."""
    memory, at = slab.tensor(), 0
    num_layers, block_bytes = pages.num_layers, pages.block_bytes
    for span in layer_runs(num_layers, chunk.num_blocks, block_bytes, chunk.piece_bytes):
        nbytes = span.num_layers * span.num_rows * block_bytes
        yield span, memory[at : at + nbytes]
        at += nbytes


class DeviceTransport:
    listens_on: Socket = "tcp"
    memory: MemoryKind = "device"
    builds = True

    def __init__(self, name: str, make_pair: MakePair) -> None:
        self.name = name
        self._make_pair = make_pair

    def dial(self, address: PortAddress, timeout_s: float) -> socket.socket:
        return dial_tcp(address, timeout_s)

    def attach_sender(
        self, wire: FrameSocket, staging: Staging, tuning: LinkTuning
    ) -> DeviceSendPath:
        meet = expect(wire, Rendezvous)
        timeout_s = tuning.build_timeout_s

        def join() -> Pair:
            timeout = timedelta(seconds=timeout_s)
            store = TCPStore(wire.peer_host, meet.tcp_port, 2, False, timeout)
            return self._join(store, SENDER, staging.pages.device, timeout_s)

        pair = _in_time(join, wire, timeout_s, f"{self.name} cannot be built")
        return DeviceSendPath(pair, meet.window_bytes, staging.pages)

    def attach_receiver(self, wire: FrameSocket, end: ReceivingEnd) -> DeviceReceivePath:
        assert end.inbox is not None
        timeout_s, device = end.tuning.build_timeout_s, end.pages.device
        door = socket.create_server((wire.host, 0), family=_family(wire.host))
        port, fd = door.getsockname()[1], door.detach()
        timeout = timedelta(seconds=timeout_s)
        store = TCPStore(
            wire.host, port, 2, True, timeout, wait_for_workers=False, master_listen_fd=fd
        )
        wire.send(Rendezvous(port, end.inbox.max_payload))

        def join() -> Pair:
            return self._join(store, RECEIVER, device, timeout_s)

        pair = _in_time(join, wire, timeout_s, f"{self.name} cannot be built")
        return DeviceReceivePath(pair, end.pages, end.inbox, end.tuning.stall_timeout_s)

    def _join(self, store: TCPStore, rank: int, device: torch.device, timeout_s: float) -> Pair:
        """A communicator comes up with its first transfer, so one is made."""
        probe = torch.zeros(PROBE_BYTES, dtype=torch.uint8, device=device)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        with making_or_breaking.inside("make"):
            pair = self._make_pair(store, rank, device, timeout_s)
            flight = pair.send(probe) if rank == SENDER else pair.receive(probe)
            flight.wait(timeout_s, lambda: False)
        return pair


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
