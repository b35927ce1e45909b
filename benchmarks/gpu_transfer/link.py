"""The link itself: handoffs by size, one after the other, through the host, after a death."""

import random
import socket
import statistics
import time
from dataclasses import dataclass

from benchmarks.gpu_transfer.peer import Peer
from benchmarks.gpu_transfer.worker import MIB, PATIENCE_S, Setup, Worker, stage_all
from services.kv_transfer.links import PortEvents

GB = 1e9


@dataclass(frozen=True)
class Handoff:
    """Seconds from the first stage(); ``complete_s`` as the receiver's engine sees it."""

    complete_s: float
    sent_s: float
    staged_s: float
    stage_calls_s: tuple[float, ...]
    sources: list[int]
    targets: list[int]


class Bench:
    """A sender in this process against a receiver in another, both with ports of one setup."""

    def __init__(self, worker: Worker, peer: Peer) -> None:
        self.worker = worker
        self.peer = peer
        self._address = ""
        self._count = 0
        self._lost_at = 0.0

    def open(self, setup: Setup) -> float:
        """Seconds from the first offer to the receiver's answer: the link's building included."""
        self.worker.close()
        self._address = self.peer.open(setup)
        self.worker.open(setup)
        name = self._expect([self.worker.some_blocks(1)])[0]
        started = time.monotonic()
        self._offer(name, 1)
        self.worker.wait(lambda events: events.ready)
        built_s = time.monotonic() - started
        self._send(name, [0], 1)
        return round(built_s, 3)

    def chunk(self, chunk_mib: int) -> int:
        return max(1, chunk_mib * MIB // self.worker.shape.chunk_bytes)

    def handoff(self, num_tokens: int, chunk_mib: int) -> Handoff:
        count = self.worker.shape.blocks(num_tokens)
        sources, targets = self.worker.some_blocks(count), self.worker.some_blocks(count)
        name = self._expect([targets])[0]
        self._offer(name, count)
        self.worker.wait(lambda events: events.ready)
        self.peer.tell("wait", names=[name])
        begun = time.monotonic()
        calls = stage_all(self.worker, name, sources, self.chunk(chunk_mib))
        staged = time.monotonic()
        self.worker.wait(lambda events: events.sent)
        sent = time.monotonic()
        complete = self.peer.hear()[name]
        return Handoff(
            complete - begun, sent - begun, staged - begun, tuple(calls), sources, targets
        )

    def by_size(self, num_tokens: int, chunk_mib: int, repeats: int) -> dict[str, float]:
        runs = [self.handoff(num_tokens, chunk_mib) for _ in range(repeats + 2)][2:]
        nbytes = self.worker.shape.blocks(num_tokens) * self.worker.shape.chunk_bytes
        complete_s = statistics.median(run.complete_s for run in runs)
        return {
            "tokens": num_tokens,
            "complete_ms": _ms(complete_s),
            "complete_ms_max": _ms(max(run.complete_s for run in runs)),
            "sent_ms": _ms(statistics.median(run.sent_s for run in runs)),
            "staged_ms": _ms(statistics.median(run.staged_s for run in runs)),
            "stage_call_ms": _ms(statistics.median(s for run in runs for s in run.stage_calls_s)),
            "gb_s": round(nbytes / complete_s / GB, 1),
        }

    def exact(self, sizes: list[int], chunk_mib: int) -> dict[str, int]:
        """Bytes that differ, over handoffs of random blocks."""
        wrong, compared = 0, 0
        for num_tokens in sizes:
            run = self.handoff(num_tokens, chunk_mib)
            wrong += self.peer.ask("verify", sources=run.sources, targets=run.targets)
            compared += len(run.targets) * self.worker.shape.chunk_bytes
        return {"bytes_compared": compared, "bytes_wrong": wrong}

    def sustained(self, num_tokens: int, chunk_mib: int, count: int) -> dict[str, float]:
        """Handoffs one behind the other, all offered before: bandwidth from the first stage() to
        the last completion."""
        blocks = self.worker.shape.blocks(num_tokens)
        names = self._expect([self.worker.some_blocks(blocks) for _ in range(count)])
        sources = [self.worker.some_blocks(blocks) for _ in range(count)]
        ready: set[str] = set()
        for name in names:
            self._offer(name, blocks)

        def all_are_ready(events: PortEvents) -> bool:
            ready.update(one.handoff_id for one in events.ready)
            return len(ready) == count

        self.worker.wait(all_are_ready)
        self.peer.tell("wait", names=names)
        begun = time.monotonic()
        for name, ids in zip(names, sources, strict=True):
            stage_all(self.worker, name, ids, self.chunk(chunk_mib))
        complete = self.peer.hear()
        took_s = max(complete.values()) - begun
        assert self.worker.port is not None
        while self.worker.port.stats().open_outgoing:
            self.worker.port.poll()
            time.sleep(0.001)
        nbytes = count * blocks * self.worker.shape.chunk_bytes
        return {
            "tokens": num_tokens,
            "handoffs": count,
            "gb_s": round(nbytes / took_s / GB, 1),
            "ms_a_handoff": _ms(took_s / count),
        }

    def _expect(self, targets: list[list[int]]) -> list[str]:
        names = [f"h{self._count + i}" for i in range(len(targets))]
        self._count += len(targets)
        self.peer.ask("expect", names=names, targets=targets)
        return names

    def _offer(self, name: str, num_blocks: int) -> None:
        assert self.worker.port is not None
        self.worker.port.offer(name, 1, num_blocks, self._address, None, 60.0)

    def _send(self, name: str, sources: list[int], piece: int) -> None:
        self.peer.tell("wait", names=[name])
        stage_all(self.worker, name, sources, piece)
        self.worker.wait(lambda events: events.sent)
        self.peer.hear()

    def loses_peer(self, num_tokens: int, chunk_mib: int, *, frozen: bool) -> dict[str, object]:
        """Kill (or freeze) the peer while chunks are under way; when is everything free again?"""
        blocks = self.worker.shape.blocks(num_tokens)
        name = self._expect([self.worker.some_blocks(blocks)])[0]
        self._offer(name, blocks)
        self.worker.wait(lambda events: events.ready)
        if frozen:
            self.peer.freeze()
        sources, chunk = self.worker.some_blocks(blocks), self.chunk(chunk_mib)
        port = self.worker.port
        assert port is not None
        staged = 0
        while staged < blocks and port.stage(
            name, staged, sources[staged : staged + chunk], staged + chunk >= blocks
        ):
            staged = min(blocks, staged + chunk)
        if not frozen:
            time.sleep(random.uniform(0, 0.002))
        struck = time.monotonic()
        if not frozen:
            self.peer.kill()
        events = self.worker.wait(lambda e: e.failed_outgoing or e.sent, failures=True)
        told = time.monotonic()
        self._lost_at = struck
        if frozen:
            self.peer.kill()
        reason = events.failed_outgoing[0].reason if events.failed_outgoing else "all was sent"
        return {
            "reason": reason,
            "told_s": round(told - struck, 3),
        }

    def goes_on_with(self, peer: Peer, setup: Setup, sizes: list[int]) -> dict[str, object]:
        """The same port and a new peer, joined while the dead link is taken apart."""
        self.peer = peer
        self._address = peer.open(setup)
        name = self._expect([self.worker.some_blocks(1)])[0]
        started = time.monotonic()
        self._offer(name, 1)
        self.worker.wait(lambda events: events.ready)
        built_s = round(time.monotonic() - started, 3)
        self._send(name, [0], 1)
        assert self.worker.port is not None
        served_s = round(time.monotonic() - self._lost_at, 3)
        (link,) = self.worker.port.stats().links
        exact = self.exact(sizes, 256)
        give_up = time.monotonic() + PATIENCE_S
        while self.worker.port.stats().staging_bytes_in_use and time.monotonic() < give_up:
            time.sleep(0.001)
        return {
            "link_built_s": built_s,
            "served_s": served_s,
            "transport": link.transport,
            **exact,
            "staging_bytes_held": self.worker.port.stats().staging_bytes_in_use,
            "staging_free_s": round(time.monotonic() - self._lost_at, 3),
            "fallbacks": self.worker.port.stats().fallbacks,
        }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])
