"""KV links of caches on GPUs. The protocol itself is tested on CPU, in tests/integration."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from services.kv_transfer.links import KvPort, LinkTuning, PortEvents
from services.kv_transfer.links.cuda_pages import CudaPages
from services.kv_transfer.links.row_copy import PlainRows, TritonRows
from tests.integration.link_peer import NUM_LAYERS

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

NUM_BLOCKS, BLOCK_BYTES = 64, 64 * 1024
PATIENCE_S = 20.0
ROOT = Path(__file__).parents[2]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def make_layers(device: str, gap: int = 0) -> list[torch.Tensor]:
    size = (NUM_BLOCKS, BLOCK_BYTES + gap)
    wide = [
        torch.randint(0, 256, size, dtype=torch.uint8, device=device) for _ in range(NUM_LAYERS)
    ]
    return [layer[:, :BLOCK_BYTES] for layer in wide]


def rows(layers: list[torch.Tensor], blocks: list[int]) -> torch.Tensor:
    return torch.stack([layer[blocks] for layer in layers]).cpu()


class Worker:
    def __init__(self, device: str, transports: list[str], **options: object) -> None:
        self.layers = make_layers(device)
        self.news = threading.Event()
        settings: dict[str, object] = {
            "geometry": "geometry",
            "staging_bytes": NUM_LAYERS * BLOCK_BYTES * 16,
            "transports": transports,
            "host_id": "this host",
            "wake": self.news.set,
            "tuning": LinkTuning(stall_timeout_s=5.0, device_piece_bytes=8 * BLOCK_BYTES),
        }
        self.port = KvPort(self.layers, **{**settings, **options})  # type: ignore[arg-type]

    def wait(self, wanted: Callable[[PortEvents], object]) -> PortEvents:
        give_up = time.monotonic() + PATIENCE_S
        while True:
            events = self.port.poll()
            if wanted(events):
                return events
            assert not events.failed_outgoing and not events.failed_incoming
            assert time.monotonic() < give_up, "waited in vain"
            self.news.wait(0.05)
            self.news.clear()


Start = Callable[..., Worker]


@pytest.fixture
def start() -> Iterator[Start]:
    workers: list[Worker] = []

    def make(device: str, transports: list[str], **options: object) -> Worker:
        workers.append(Worker(device, transports, **options))
        return workers[-1]

    yield make
    for worker in workers:
        worker.port.close()


def hand_over(a: Worker, b: Worker, sources: list[int], targets: list[int], name: str) -> str:
    """In two pieces; the transport it took."""
    b.port.expect(name, 1, 0, targets, PATIENCE_S)
    a.port.offer(name, 1, len(targets), b.port.address, None, PATIENCE_S)
    a.wait(lambda events: events.ready)
    half = len(sources) // 2
    assert a.port.stage(name, 0, sources[:half], False)
    assert a.port.stage(name, half, sources[half:], True)
    b.wait(lambda events: events.complete)
    return a.wait(lambda events: events.sent).sent[0].transport


@pytest.mark.parametrize("gap", [0, 4096])
@pytest.mark.parametrize("copier", [TritonRows, PlainRows])
def test_the_copiers_agree_with_indexing(
    copier: type[TritonRows] | type[PlainRows], gap: int
) -> None:
    layers = make_layers("cuda", gap)
    ids = torch.randperm(NUM_BLOCKS, device="cuda")[:13]
    chunk = torch.empty((NUM_LAYERS, 13, BLOCK_BYTES), dtype=torch.uint8, device="cuda")
    copier(layers).gather(0, ids, chunk)
    assert torch.equal(chunk, torch.stack([layer[ids] for layer in layers]))
    before = [layer.clone() for layer in layers]
    copier(layers).scatter(2, ids.flip(0), chunk[2:])
    for i, layer in enumerate(layers):
        if i >= 2:
            before[i][ids.flip(0)] = chunk[i]
        assert torch.equal(layer, before[i])


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_a_gather_takes_the_blocks_as_they_are_in_stream_order(target: str) -> None:
    layers = make_layers("cuda")
    pages = CudaPages(layers)
    out = torch.empty((NUM_LAYERS, 2, BLOCK_BYTES), dtype=torch.uint8, device=target)
    out = out.pin_memory() if target == "cpu" else out
    torch.cuda._sleep(50_000_000)  # the forward pass, some 30 ms
    for layer in layers:
        layer[5] = 55  # what it computes
    begun = time.monotonic()
    fences = pages.gather([5, 6], out, 2 * 2 * BLOCK_BYTES)
    assert time.monotonic() - begun < 0.02, "the engine's thread waited for the device"
    for layer in layers:
        layer[5] = 0  # the block's next user
    for fence in fences:
        fence()
    assert len(fences) == (2 if target == "cuda" else 1)
    assert out[:, 0].eq(55).all()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_blocks_go_through_the_host_on_one_gpu(start: Start, transport: str) -> None:
    a, b = start("cuda", [transport]), start("cuda", [transport])
    assert hand_over(a, b, [9, 3, 40, 7, 21], [63, 0, 5, 6, 12], "h") == transport
    assert torch.equal(rows(b.layers, [63, 0, 5, 6, 12]), rows(a.layers, [9, 3, 40, 7, 21]))


def test_two_workers_on_one_gpu_do_not_try_nccl(start: Start) -> None:
    a, b = start("cuda", ["nccl", "shm", "tcp"]), start("cuda", ["nccl", "shm", "tcp"])
    assert hand_over(a, b, [1, 2], [3, 4], "h") == "shm"
    assert a.port.stats().fallbacks == 0


@two_gpus
def test_blocks_go_from_gpu_to_gpu_exactly_and_both_ways(start: Start) -> None:
    a, b = start("cuda:0", ["nccl", "tcp"]), start("cuda:1", ["nccl", "tcp"])
    for name, here, there in (("ab", a, b), ("ba", b, a)):
        before = rows(there.layers, [1, 2])
        expected = rows(here.layers, [9, 3, 40, 7, 21])
        assert hand_over(here, there, [9, 3, 40, 7, 21], [63, 0, 5, 6, 12], name) == "nccl"
        assert torch.equal(rows(there.layers, [63, 0, 5, 6, 12]), expected)
        assert torch.equal(rows(there.layers, [1, 2]), before)
    assert a.port.stats().staging_bytes_in_use == 0


@two_gpus
def test_staged_blocks_may_be_overwritten_at_once(start: Start) -> None:
    a, b = start("cuda:0", ["nccl"]), start("cuda:1", ["nccl"])
    expected = rows(a.layers, [4, 5, 6])
    b.port.expect("h", 1, 0, [1, 2, 3], PATIENCE_S)
    a.port.offer("h", 1, 3, b.port.address, None, PATIENCE_S)
    a.wait(lambda events: events.ready)
    with torch.cuda.device(0):
        torch.cuda._sleep(50_000_000)
        assert a.port.stage("h", 0, [4, 5, 6], True)
        for layer in a.layers:
            layer[4:7] = 0
    b.wait(lambda events: events.complete)
    assert torch.equal(rows(b.layers, [1, 2, 3]), expected)


@two_gpus
def test_a_device_link_that_cannot_be_built_falls_back(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("no NCCL today")

    monkeypatch.setattr("services.kv_transfer.links.device_link.DeviceTransport._join", refuse)
    a, b = start("cuda:0", ["nccl", "shm", "tcp"]), start("cuda:1", ["nccl", "shm", "tcp"])
    assert hand_over(a, b, [1, 2], [3, 4], "h") == "shm"
    assert torch.equal(rows(b.layers, [3, 4]), rows(a.layers, [1, 2]))
    assert a.port.stats().fallbacks == 1 and "no NCCL today" in caplog.text


class Peer:
    """A port on the second GPU in a process of its own (tests/integration/link_peer.py)."""

    def __init__(self) -> None:
        command = ["-m", "tests.integration.link_peer", "9", str(BLOCK_BYTES), "nccl,tcp", "cuda:1"]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self.hear()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, what: str, **arguments: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@two_gpus
@pytest.mark.faults
def test_a_killed_receiver_costs_its_link_alone_and_its_successor_is_joined_meanwhile(
    start: Start,
) -> None:
    a = start("cuda:0", ["nccl", "tcp"])
    peers = [Peer(), Peer()]
    ids = list(range(12))
    expected = {"handoff_id": "h", "first_block": 0, "block_ids": ids, "deadline_s": 60.0}
    try:
        for epoch, peer in enumerate(peers, 1):
            peer.do("expect", epoch=epoch, **expected)
            a.port.offer("h", epoch, 12, peer.address, None, PATIENCE_S)
            a.wait(lambda events: events.ready)
            if peer is peers[0]:
                peer.process.send_signal(signal.SIGSTOP)
            assert a.port.stage("h", 0, ids[:6], False)
            assert a.port.stage("h", 6, ids[6:], True)
            if peer is peers[0]:
                peer.kill()
                assert a.wait(lambda events: events.failed_outgoing).failed_outgoing
        assert a.wait(lambda events: events.sent).sent[0].transport == "nccl"
        assert [peers[1].hear(), peers[1].hear()] == ["arriving", "complete"]
    finally:
        for peer in peers:
            peer.kill()
