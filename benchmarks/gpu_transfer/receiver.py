"""The second process: does what lines of JSON on stdin say, answers each with one on stdout."""

import json
import sys
import time
from typing import Any

import torch

from benchmarks.gpu_transfer.bystander import Bystander
from benchmarks.gpu_transfer.hardware import RawPlan, raw_pair
from benchmarks.gpu_transfer.worker import Setup, Shape, Worker, make_layers

OWN_SEED, SENDER_SEED = 1, 0


class Receiver:
    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.worker = Worker(shape, OWN_SEED, device)
        self._theirs: list[torch.Tensor] | None = None
        self._done: dict[str, float] = {}
        self._bystander: Bystander | None = None

    def open(self, **setup: Any) -> str:
        self.worker.close()
        return self.worker.open(Setup(**{**setup, "transports": tuple(setup["transports"])}))

    def expect(self, names: list[str], targets: list[list[int]]) -> None:
        assert self.worker.port is not None
        for name, blocks in zip(names, targets, strict=True):
            self.worker.port.expect(name, 1, 0, blocks, 60.0)

    def wait(self, names: list[str]) -> dict[str, float]:
        """When each was complete (monotonic seconds)."""
        missing = set(names)

        def note(events: Any) -> bool:
            now = time.monotonic()
            for done in events.complete:
                self._done[done.handoff_id] = now
            return missing <= set(self._done)

        if not missing <= set(self._done):
            self.worker.wait(note)
        return {name: self._done.pop(name) for name in names}

    def verify(self, sources: list[int], targets: list[int]) -> int:
        """Bytes that differ from the sender's blocks."""
        worker = self.worker
        if self._theirs is None:
            self._theirs = make_layers(worker.shape, SENDER_SEED, worker.device)
        return sum(
            int((mine[targets] != theirs[sources]).sum())
            for mine, theirs in zip(worker.layers, self._theirs, strict=True)
        )

    def poison(self, targets: list[int]) -> None:
        for layer in self.worker.layers:
            layer[targets] = 0xEE
        self.finish_device_work()

    def finish_device_work(self) -> None:
        if self.worker.device.type == "cuda":
            torch.cuda.synchronize(self.worker.device)

    def raw(self, **plan: Any) -> list[float]:
        return raw_pair(RawPlan(**plan), 1, self.worker.device)

    def bystander(self, run: bool) -> dict[str, float]:
        """Start kernels beside the transfers, or end them and say how long each round took."""
        if run:
            self._bystander = self._bystander or Bystander(self.worker.device)
            self._bystander.start()
            return {}
        assert self._bystander is not None
        return self._bystander.stop()


def serve(shape: Shape, device: torch.device) -> None:
    receiver = Receiver(shape, device)
    print(json.dumps("up"), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(receiver, command.pop("do"))(**command)
        print(json.dumps(answer), flush=True)
    receiver.worker.close()
    torch.distributed.destroy_process_group()
