"""What the machine gives: peer copies, plain NCCL, the copy kernels."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
from torch.distributed import TCPStore

from services.kv_transfer.links.cuda_pages import CudaPages
from services.kv_transfer.links.pair import GlooPair, NcclPair
from services.kv_transfer.links.row_copy import PlainRows, TritonRows

GB = 1e9


def peer_copy_gb_s(here: torch.device, there: torch.device, nbytes: int) -> float:
    """cudaMemcpyPeer, as copy_ between two devices does it."""
    source = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=here)
    target = torch.empty(nbytes, dtype=torch.uint8, device=there)
    took_s = device_time_s(lambda: target.copy_(source), here, repeats=20)
    torch.cuda.synchronize(there)
    return round(nbytes / took_s / GB, 1)


def device_time_s(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of each run's time between two events."""
    times = []
    with torch.cuda.device(device):
        for i in range(repeats + 3):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            if i >= 3:
                times.append(begin.elapsed_time(end) / 1000)
    return float(statistics.median(times))


@dataclass(frozen=True)
class RawPlan:
    """Plain sends of each size, ``total`` bytes of it; both ends need the same."""

    port: int
    sizes: list[int]
    total: int


def raw_pair(plan: RawPlan, rank: int, device: torch.device) -> list[float]:
    """GB/s of transfers queued one behind the other, for each size; both ends call this."""
    timeout = timedelta(seconds=60)
    store = TCPStore("127.0.0.1", plan.port, 2, rank == 1, timeout, wait_for_workers=False)
    make = NcclPair if device.type == "cuda" else GlooPair
    pair = make(store, rank, device, 60.0)
    move = pair.send if rank == 0 else pair.receive
    memory = torch.randint(0, 256, (max(plan.sizes),), dtype=torch.uint8, device=device)
    rates = []
    for size in plan.sizes:
        for count in (4, max(4, plan.total // size)):
            started = time.monotonic()
            flights = [move(memory[:size]) for _ in range(count)]
            for flight in flights:
                flight.wait(60.0, lambda: False)
            took_s = time.monotonic() - started
        rates.append(round(count * size / took_s / GB, 1))
    pair.abort()
    return rates


def copy_kernels(layers: list[torch.Tensor], blocks: list[int]) -> dict[str, float]:
    """GB/s of bytes moved once (each is read and written) and the host's time, per chunk."""
    device = layers[0].device
    shape = (len(layers), len(blocks), layers[0].shape[1])
    chunk = torch.empty(shape, dtype=torch.uint8, device=device)
    ids = torch.tensor(blocks, device=device)
    figures: dict[str, float] = {"blocks": len(blocks), "bytes": chunk.numel()}
    for copier in (TritonRows(layers), PlainRows(layers)):
        name = type(copier).__name__
        copier.gather(0, ids, chunk)
        copier.scatter(0, ids, chunk)
        gather_s = device_time_s(partial(copier.gather, 0, ids, chunk), device, 30)
        scatter_s = device_time_s(partial(copier.scatter, 0, ids, chunk), device, 30)
        figures[f"{name}_gather_gb_s"] = round(chunk.numel() / gather_s / GB, 1)
        figures[f"{name}_scatter_gb_s"] = round(chunk.numel() / scatter_s / GB, 1)
        figures[f"{name}_gather_us"] = round(gather_s * 1e6, 1)
    figures["gather_host_us"] = _host_us(layers, blocks, chunk)
    return figures


def _host_us(layers: list[torch.Tensor], blocks: list[int], chunk: torch.Tensor) -> float:
    """What the engine's thread pays for one gather, ids and event included."""
    pages = CudaPages(layers)
    times = []
    for _ in range(50):
        before = time.perf_counter()
        fences = pages.gather(blocks, chunk, chunk.numel())
        times.append(time.perf_counter() - before)
        fences[0]()
    return round(1e6 * statistics.median(times), 1)
