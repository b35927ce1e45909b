"""Kernels as a decode step has them (weights read once, few tokens), replayed beside transfers."""

import statistics
import threading

import torch

NUM_WEIGHTS = 24
WEIGHT_SHAPE = (13824, 5120)  # one projection of the 14B shape, 135 MiB in bf16
NUM_TOKENS = 16


class Bystander:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream(device)
            tokens = torch.randn(NUM_TOKENS, WEIGHT_SHAPE[1], dtype=torch.bfloat16, device=device)
            weights = [
                torch.randn(WEIGHT_SHAPE, dtype=torch.bfloat16, device=device)
                for _ in range(NUM_WEIGHTS)
            ]

            def step() -> torch.Tensor:
                return torch.stack([(tokens @ weight.t()).sum() for weight in weights])

            with torch.cuda.stream(self._stream):
                step()
            self._stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._out = step()
            self._weights = weights
            self._tokens = tokens
        self._running = threading.Event()
        self._times_ms: list[float] = []
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._times_ms = []
        self._running.set()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        self._running.clear()
        assert self._thread is not None
        self._thread.join()
        times = sorted(self._times_ms)
        return {
            "rounds": len(times),
            "p50_ms": round(statistics.median(times), 4),
            "p99_ms": round(times[int(0.99 * (len(times) - 1))], 4),
        }

    def _run(self) -> None:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            while self._running.is_set():
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                self._graph.replay()
                end.record()
                end.synchronize()
                self._times_ms.append(begin.elapsed_time(end))
