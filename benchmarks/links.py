"""Bandwidth and latency of a KV link between two processes on this host, by chunk size.

    python -m benchmarks.links --json benchmarks/results/links_cpu.json

A second process receives. One handoff moves ``--total-mib`` in chunks of one size through staging
of two chunks (all blocks at random places); the time is from the first stage() to the ack of the
last chunk. ``stage_ms`` is what the engine's thread pays for one chunk; ``one_chunk_ms`` is a
chunk alone, from stage() to its ack. For scale: ``copy_gib_s`` is a plain single-threaded copy of
the same size.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from services.kv_transfer.links import KvPort, PortEvents

MIB = 1 << 20
NUM_LAYERS = 32
BLOCK_BYTES = 32 * 1024  # 1 MiB a block over all layers
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Figure:
    transport: str
    chunk_mib: int
    total_mib: int
    gib_s: float
    one_chunk_ms: float
    stage_ms: float
    copy_gib_s: float


class Engine:
    """A port and the wait for its news, in place of an engine's loop."""

    def __init__(self, num_blocks: int, staging_bytes: int, transport: str) -> None:
        layers = [
            torch.randint(0, 256, (num_blocks, BLOCK_BYTES), dtype=torch.uint8)
            for _ in range(NUM_LAYERS)
        ]
        self.news = threading.Event()
        self.port = KvPort(
            layers,
            geometry="benchmark",
            staging_bytes=staging_bytes,
            transports=[transport],
            host_id="this host",
            wake=self.news.set,
        )

    def wait(self, wanted: Callable[[PortEvents], object]) -> None:
        while True:
            self.news.wait(30)
            self.news.clear()
            events = self.port.poll()
            failures = [*events.failed_outgoing, *events.failed_incoming]
            if failures:
                raise SystemExit(f"handoff failed: {failures[0].reason}")
            if wanted(events):
                return


def receive(num_blocks: int, transport: str) -> None:
    """The second process: expects what it is told to, one handoff a line."""
    engine = Engine(num_blocks, MIB * 2, transport)
    print(engine.port.address, flush=True)
    for line in sys.stdin:
        name, n = line.split()
        ids = random.sample(range(num_blocks), int(n))
        engine.port.expect(name, 1, 0, ids, 60.0)
        print("expected", flush=True)
        engine.wait(lambda events: events.complete)


class Peer:
    def __init__(self, num_blocks: int, transport: str) -> None:
        command = [sys.executable, "-m", "benchmarks.links", "--receive", str(num_blocks)]
        self._process = subprocess.Popen(
            [*command, "--transport", transport],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self._read()

    def expect(self, name: str, num_blocks: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {num_blocks}\n")
        self._process.stdin.flush()
        assert self._read() == "expected"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def send(
    engine: Engine, peer: Peer, name: str, ids: list[int], chunk: int
) -> tuple[float, list[float]]:
    """Seconds from the first stage() to the last ack, and those of each stage()."""
    peer.expect(name, len(ids))
    engine.port.offer(name, 1, len(ids), peer.address, None, 60.0)
    engine.wait(lambda events: events.ready)
    stage_s: list[float] = []
    started = time.perf_counter()
    for start in range(0, len(ids), chunk):
        part, last = ids[start : start + chunk], start + chunk >= len(ids)
        while True:
            before = time.perf_counter()
            if engine.port.stage(name, start, part, last):
                break
            engine.wait(lambda events: events.staging_freed)
        stage_s.append(time.perf_counter() - before)
    engine.wait(lambda events: events.sent)
    return time.perf_counter() - started, stage_s


def copy_gib_s(nbytes: int) -> float:
    source = torch.ones(nbytes, dtype=torch.uint8)
    target = torch.zeros(nbytes, dtype=torch.uint8)
    times = []
    for _ in range(5):
        before = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - before)
    return nbytes / statistics.median(times) / 2**30


def measure(transport: str, chunk_mib: int, total_mib: int, repeats: int) -> Figure:
    engine = Engine(total_mib, (2 * chunk_mib + 1) * MIB, transport)
    peer = Peer(total_mib, transport)
    ids = random.sample(range(total_mib), total_mib)
    send(engine, peer, "warm-up", ids, chunk_mib)
    runs = [send(engine, peer, f"all-{i}", ids, chunk_mib) for i in range(repeats)]
    alone = [send(engine, peer, f"one-{i}", ids[:chunk_mib], chunk_mib) for i in range(repeats)]
    peer.close()
    engine.port.close()
    return Figure(
        transport,
        chunk_mib,
        total_mib,
        gib_s=round(total_mib / 1024 / statistics.median(s for s, _ in runs), 3),
        one_chunk_ms=round(1000 * statistics.median(s for s, _ in alone), 3),
        stage_ms=round(1000 * statistics.median(t for _, each in runs for t in each), 3),
        copy_gib_s=round(copy_gib_s(chunk_mib * MIB), 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--transport", action="append", choices=["shm", "tcp"])
    parser.add_argument("--chunk-mib", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--total-mib", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--receive", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.receive:
        receive(args.receive, args.transport[0])
        return
    figures = []
    for transport in args.transport or ["shm", "tcp"]:
        for chunk_mib in args.chunk_mib:
            figures.append(measure(transport, chunk_mib, args.total_mib, args.repeats))
            print(figures[-1], flush=True)
    if args.json:
        report = {
            "cpu_count": os.cpu_count(),
            "load_average_1min": round(os.getloadavg()[0], 2),
            "num_layers": NUM_LAYERS,
            "block_bytes": BLOCK_BYTES,
        }
        rows = [asdict(figure) for figure in figures]
        args.json.write_text(json.dumps({**report, "figures": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
