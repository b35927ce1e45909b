"""The parts of a device link that need no device."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from services.kv_transfer.links.device_link import DeviceReceivePath, DeviceSendPath, pieces
from services.kv_transfer.links.errors import LinkBroken
from services.kv_transfer.links.frames import Chunk, FrameSocket
from services.kv_transfer.links.pages import HostPages
from services.kv_transfer.links.pair import Rooms
from services.kv_transfer.links.staging import DeviceArena, Slab
from services.kv_transfer.links.transports import check_transports

LAYERS, ROW = 5, 16
PAGES = HostPages([torch.zeros((8, ROW), dtype=torch.uint8) for _ in range(LAYERS)])
CPU = torch.device("cpu")


class FakeFlight:
    def wait(self, timeout_s: float, is_over: Callable[[], bool]) -> None:
        if is_over():
            raise LinkBroken("over")


class FakePair:
    def __init__(self, is_quiet: bool = True) -> None:
        self.sent: list[int] = []
        self._is_quiet = is_quiet

    def send(self, tensor: torch.Tensor) -> FakeFlight:
        self.sent.append(tensor.numel())
        return FakeFlight()

    def receive(self, tensor: torch.Tensor) -> FakeFlight:
        tensor.fill_(7)
        return FakeFlight()

    def abort(self) -> bool:
        return self._is_quiet


def chunk(num_blocks: int, piece_bytes: int, seq: int = 0) -> Chunk:
    nbytes = LAYERS * num_blocks * ROW
    return Chunk("h", 1, seq, 0, num_blocks, False, nbytes, 0, 0, piece_bytes)


def slab_for(arena: DeviceArena, what: Chunk) -> Slab:
    slab = arena.reserve(what.nbytes)
    assert slab is not None
    return slab


@pytest.fixture
def wire() -> Iterator[FrameSocket]:
    here, there = socket.socketpair()
    yield FrameSocket(here, 1.0)
    here.close()
    there.close()


def test_pieces_are_whole_layers_in_order_and_cover_the_chunk() -> None:
    what = chunk(3, 2 * 3 * ROW)
    arena = DeviceArena(4096, CPU)
    spans = [
        (s.layer, s.num_layers, p.numel()) for s, p in pieces(PAGES, what, slab_for(arena, what))
    ]
    assert spans == [(0, 2, 96), (2, 2, 96), (4, 1, 48)]
    assert len(list(pieces(PAGES, chunk(3, 1), slab_for(arena, what)))) == LAYERS


def test_each_piece_waits_for_its_own_gather(wire: FrameSocket) -> None:
    pair, what = FakePair(), chunk(3, 2 * 3 * ROW)
    slab = slab_for(DeviceArena(4096, CPU), what)
    seen: list[int] = []
    slab.fences = [lambda i=i: seen.append(len(pair.sent)) for i in range(3)]  # type: ignore[misc]
    DeviceSendPath(pair, 4096, PAGES).send(wire, what, slab)
    assert seen == [0, 1, 2] and pair.sent == [96, 96, 48]


def test_no_more_than_the_window_is_under_way(wire: FrameSocket) -> None:
    pair, arena = FakePair(), DeviceArena(4096, CPU)
    first, second = chunk(4, 4096, seq=1), chunk(4, 4096, seq=2)
    path = DeviceSendPath(pair, first.nbytes + 1, PAGES)
    path.send(wire, first, slab_for(arena, first))
    waiting = threading.Thread(target=path.send, args=(wire, second, slab_for(arena, second)))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive() and len(pair.sent) == 1
    path.confirmed(first)
    waiting.join(5)
    assert len(pair.sent) == 2


def test_the_end_of_the_link_ends_the_wait_for_the_window(wire: FrameSocket) -> None:
    arena, what = DeviceArena(4096, CPU), chunk(4, 4096)
    path = DeviceSendPath(FakePair(), what.nbytes, PAGES)
    path.send(wire, what, slab_for(arena, what))
    wire.shutdown()
    with pytest.raises(LinkBroken, match="ended"):
        path.send(wire, what, slab_for(arena, what))


def test_a_chunk_beyond_the_window_is_an_error_and_not_a_hang(wire: FrameSocket) -> None:
    what = chunk(8, 4096)
    with pytest.raises(LinkBroken, match="the receiver takes 100"):
        DeviceSendPath(FakePair(), 100, PAGES).send(
            wire, what, slab_for(DeviceArena(4096, CPU), what)
        )


@pytest.mark.parametrize("is_quiet", [True, False])
def test_memory_that_a_device_may_still_write_is_not_given_back(
    wire: FrameSocket, is_quiet: bool
) -> None:
    inbox = DeviceArena(4096, CPU)
    path = DeviceReceivePath(FakePair(is_quiet), PAGES, inbox, 1.0)
    spans = path.receive(wire, chunk(2, 4096))
    wire.shutdown()
    with pytest.raises(LinkBroken):
        next(spans)
    path.abort()
    path.close()
    assert (inbox.in_use == 0) == is_quiet


def test_what_landed_gives_its_memory_back(wire: FrameSocket) -> None:
    inbox = DeviceArena(4096, CPU)
    path = DeviceReceivePath(FakePair(), PAGES, inbox, 1.0)
    rows = [piece.clone() for _, piece in path.receive(wire, chunk(2, 2 * 2 * ROW))]
    assert [piece.shape[0] for piece in rows] == [2, 2, 1] and all(p.eq(7).all() for p in rows)
    assert inbox.in_use == 0


def test_a_chunk_that_announces_nonsense_is_refused(wire: FrameSocket) -> None:
    path = DeviceReceivePath(FakePair(), PAGES, DeviceArena(128, CPU), 1.0)
    for bad in (chunk(2, 0), chunk(8, 64)):
        with pytest.raises(LinkBroken, match="in pieces of"):
            path.receive(wire, bad)


def test_rooms_let_in_one_kind_at_a_time_and_many_of_it() -> None:
    rooms = Rooms(patience_s=30.0)
    inside = threading.Event()

    def break_one() -> None:
        with rooms.inside("break"):
            inside.set()

    with rooms.inside("make"), rooms.inside("make"):
        other = threading.Thread(target=break_one)
        other.start()
        assert not inside.wait(0.05)
    assert inside.wait(5)
    other.join()


def test_patience_with_the_other_kind_ends() -> None:
    rooms = Rooms(patience_s=0.01)
    with rooms.inside("make"), rooms.inside("break"):
        pass


def test_transports_that_the_device_cannot_have_are_an_error() -> None:
    for names in (["nccl", "tcp"], ["carrier pigeon"], []):
        with pytest.raises(ValueError, match="transport"):
            check_transports(names, CPU)
    with pytest.raises(ValueError, match="moves host memory"):
        check_transports(["gloo"], torch.device("cuda:0"))
    check_transports(["gloo", "shm", "tcp"], CPU)
