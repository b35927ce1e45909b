"""Command line: runs every part, prints a short table, writes the whole as JSON."""

import argparse
import faulthandler
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_transfer import hardware
from benchmarks.gpu_transfer.bystander import Bystander
from benchmarks.gpu_transfer.link import Bench, free_port
from benchmarks.gpu_transfer.peer import Peer
from benchmarks.gpu_transfer.receiver import SENDER_SEED, serve
from benchmarks.gpu_transfer.worker import MIB, SMALL, Setup, Shape, Worker

SIZES = {16: 20, 1024: 20, 8192: 12, 32768: 6}  # tokens: repeats
GIB = 2**30
SLOW_S = 25.0  # a part that takes longer hangs: show where


class Report:
    """Keeps going when one part fails, and says so."""

    def __init__(self, path: Path | None) -> None:
        self.parts: dict[str, Any] = {}
        self._path = path
        self._started = time.monotonic()

    def part(self, name: str, work: Callable[[], Any]) -> None:
        started = time.monotonic()
        faulthandler.dump_traceback_later(SLOW_S)
        try:
            self.parts[name] = work()
        except Exception as error:
            logging.exception("%s", name)
            self.parts[name] = {"error": f"{type(error).__name__}: {error}"}
        faulthandler.cancel_dump_traceback_later()
        took, total = time.monotonic() - started, time.monotonic() - self._started
        print(f"[{total:6.1f} s] {name} ({took:.1f} s): {json.dumps(self.parts[name])}", flush=True)
        if self._path is not None:
            self._path.write_text(json.dumps(self.parts, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_transfer")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one setup only")
    parser.add_argument("--cpu", action="store_true", help="tiny, over gloo: to try the script")
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    one_rank_group()
    shape = SMALL if args.cpu else Shape()
    here, there = (torch.device("cpu" if args.cpu else f"cuda:{i}") for i in range(2))
    if args.receive:
        serve(shape, there)
        return
    report = Report(args.json)
    peer_arguments = ["--cpu"] if args.cpu else []
    peer = Peer(peer_arguments)  # fills its cache meanwhile
    if not args.cpu:
        report.part("machine", machine)
        report.part("peer_copy_gb_s", lambda: hardware.peer_copy_gb_s(here, there, GIB))
    worker = Worker(shape, SENDER_SEED, here)
    if not args.cpu:
        report.part(
            "kernels",
            lambda: [
                hardware.copy_kernels(worker.layers, worker.some_blocks(n)) for n in (1, 21, 42)
            ],
        )
    bench = Bench(worker, peer)
    best = "gloo" if args.cpu else "nccl"
    run_link(report, bench, best, quick=args.quick or args.cpu)
    report.part("raw_gb_s", lambda: raw(bench, here))
    if not args.cpu:
        report.part("bystander", lambda: bystander(bench, best, here))
    for name in ("shm", "tcp"):
        report.part(f"through host, {name}", partial(through_host, bench, name))
    report.part("killed peer", lambda: death(bench, Peer(peer_arguments), best, frozen=False))
    report.part("frozen peer", lambda: death(bench, Peer(peer_arguments), best, frozen=True))
    worker.close()
    bench.peer.close()
    torch.distributed.destroy_process_group()
    print(table(report.parts))


def one_rank_group() -> None:
    """As an engine's worker has one."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )


def machine() -> dict[str, Any]:
    return {
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }


def kernels(worker: Worker) -> list[dict[str, float]]:
    return [hardware.copy_kernels(worker.layers, worker.some_blocks(n)) for n in (1, 21, 42)]


def run_link(report: Report, bench: Bench, transport: str, quick: bool) -> None:
    setups = [(512, 128), (512, 64), (256, 64), (256, 128), (1024, 128)]
    for chunk_mib, piece_mib in setups[:1] if quick else setups:
        name = f"link, chunks of {chunk_mib} MiB in pieces of {piece_mib}"
        report.part(name, partial(one_setup, bench, transport, chunk_mib, piece_mib))
        if "error" in report.parts[name]:
            raise SystemExit(f"the link does not work: {report.parts[name]['error']}")


def one_setup(bench: Bench, transport: str, chunk_mib: int, piece_mib: int) -> dict[str, Any]:
    staging_mib = 2048 if bench.worker.device.type == "cuda" else 64
    result: dict[str, Any] = {}
    result["built_s"] = bench.open(Setup((transport,), piece_mib, staging_mib))
    result["exact"] = bench.exact([16, 48, 1000, 8192], chunk_mib)
    result["sizes"] = [bench.by_size(n, chunk_mib, repeats) for n, repeats in SIZES.items()]
    result["sustained"] = bench.sustained(8192, chunk_mib, 24)
    result["exact after"] = bench.exact([1000, 8192, 32768], chunk_mib)
    return result


def raw(bench: Bench, device: torch.device) -> dict[str, Any]:
    sizes = [n * MIB for n in (1, 16, 64, 128, 1024)]
    result: dict[str, Any] = {"sizes_mib": [n // MIB for n in sizes]}
    total = 8 * GIB if device.type == "cuda" else 64 * MIB
    sizes = sizes if device.type == "cuda" else [MIB, 16 * MIB]
    plan = hardware.RawPlan(free_port(), sizes, total)
    bench.peer.tell("raw", **asdict(plan))
    result["gb_s"] = hardware.raw_pair(plan, 0, device)
    bench.peer.hear()
    return result


def bystander(bench: Bench, transport: str, device: torch.device) -> dict[str, Any]:
    """A decode step's kernels on both GPUs, alone and beside handoffs without a pause."""
    bench.open(Setup((transport,)))
    mine = Bystander(device)
    result: dict[str, Any] = {}
    for beside in ("nothing", "handoffs", "nothing again"):
        bench.peer.ask("bystander", run=True)
        mine.start()
        if beside == "handoffs":
            result["handoffs"] = bench.sustained(8192, 512, 200)
        else:
            time.sleep(1.0)
        result[f"beside {beside}"] = {
            "sender": mine.stop(),
            "receiver": bench.peer.ask("bystander", run=False),
        }
    return result


def through_host(bench: Bench, transport: str) -> dict[str, Any]:
    staging_mib = 512 if bench.worker.device.type == "cuda" else 64
    built_s = bench.open(Setup((transport,), staging_mib=staging_mib))
    return {
        "built_s": built_s,
        "exact": bench.exact([16, 1000], 32),
        "sizes": [bench.by_size(n, 32, 3) for n in (16, 1024, 8192)],
    }


def death(bench: Bench, successor: Peer, transport: str, *, frozen: bool) -> dict[str, Any]:
    staging_mib = 2048 if bench.worker.device.type == "cuda" else 64
    setup = Setup((transport, "tcp"), staging_mib=staging_mib, stall_timeout_s=2.0)
    successor.ask("finish_device_work")  # it is up and has its cache
    bench.open(setup)
    lost = bench.loses_peer(8192, 256, frozen=frozen)
    return {**lost, "then": bench.goes_on_with(successor, setup, [16, 8192])}


def table(parts: dict[str, Any]) -> str:
    copy = parts.get("peer_copy_gb_s") or 0
    lines = [f"peer copy {copy} GB/s; plain NCCL {parts.get('raw_gb_s')}"]
    for name, part in parts.items():
        if not isinstance(part, dict) or "sizes" not in part:
            continue
        cells = [f"{s['tokens']}: {s['complete_ms']} ms {s['gb_s']} GB/s" for s in part["sizes"]]
        sustained = part.get("sustained", {}).get("gb_s", 0)
        share = f"{sustained / copy:.3f}" if copy else "-"
        lines.append(f"{name}: {'; '.join(cells)}; sustained {sustained} ({share} of peer copy)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
