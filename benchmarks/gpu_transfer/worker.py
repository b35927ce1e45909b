"""One end: a cache, a port and the wait for its news, in place of an engine."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from services.kv_transfer.links import KvPort, LinkTuning, PortEvents

PATIENCE_S = 20.0
MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """A cache; the tokens of a block share ``block_bytes`` in each layer."""

    num_layers: int = 48
    block_bytes: int = 64 * 1024
    num_blocks: int = 4096
    block_tokens: int = 16

    @property
    def chunk_bytes(self) -> int:
        """One block, all layers."""
        return self.num_layers * self.block_bytes

    def blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)


SMALL = Shape(num_layers=4, block_bytes=4096, num_blocks=4096)


@dataclass(frozen=True)
class Setup:
    """How a port is made."""

    transports: tuple[str, ...]
    piece_mib: int = 128
    staging_mib: int = 2048
    stall_timeout_s: float = 10.0


def make_layers(shape: Shape, seed: int, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    size = (shape.num_blocks, shape.block_bytes)
    return [
        torch.randint(0, 256, size, dtype=torch.uint8, device=device, generator=generator)
        for _ in range(shape.num_layers)
    ]


class Worker:
    def __init__(self, shape: Shape, seed: int, device: torch.device) -> None:
        self.shape = shape
        self.device = device
        self.layers = make_layers(shape, seed, device)
        self.port: KvPort | None = None
        self.news = threading.Event()
        self._kept: list[PortEvents] = []

    def open(self, setup: Setup) -> str:
        tuning = replace(
            LinkTuning.on(self.device),
            device_piece_bytes=setup.piece_mib * MIB,
            stall_timeout_s=setup.stall_timeout_s,
        )
        self.port = KvPort(
            self.layers,
            geometry="benchmark",
            staging_bytes=setup.staging_mib * MIB,
            transports=setup.transports,
            host_id="this host",
            wake=self.news.set,
            tuning=tuning,
        )
        return self.port.address

    def close(self) -> None:
        if self.port is not None:
            self.port.close()
            self.port = None

    def wait(self, wanted: Callable[[PortEvents], object], *, failures: bool = False) -> PortEvents:
        """Poll until ``wanted`` says yes of one poll's events."""
        assert self.port is not None
        give_up = time.monotonic() + PATIENCE_S
        while True:
            events = self.port.poll()
            failed = [*events.failed_outgoing, *events.failed_incoming]
            if failed and not failures:
                raise RuntimeError(f"handoff failed: {failed[0].reason}")
            if wanted(events):
                return events
            self.news.wait(0.1)
            self.news.clear()
            if time.monotonic() > give_up:
                raise TimeoutError("waited in vain")

    def some_blocks(self, count: int) -> list[int]:
        return random.sample(range(self.shape.num_blocks), count)


@dataclass(frozen=True)
class Sending:
    """When a handoff's parts happened (monotonic seconds, one clock for all of a host)."""

    first_stage_at: float
    last_staged_at: float
    sent_at: float
    stage_s: tuple[float, ...]


def stage_all(worker: Worker, name: str, blocks: Sequence[int], piece: int) -> list[float]:
    """Hand one handoff to the port in pieces, as room allows; seconds of each call."""
    assert worker.port is not None
    took: list[float] = []
    for start in range(0, len(blocks), piece):
        part, last = blocks[start : start + piece], start + piece >= len(blocks)
        while True:
            before = time.perf_counter()
            if worker.port.stage(name, start, part, last):
                break
            worker.wait(lambda events: events.staging_freed)
        took.append(time.perf_counter() - before)
    return took
