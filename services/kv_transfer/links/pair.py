"""Two workers joined for tensors: one communicator of two ranks over a private store.

``NcclPair`` joins two GPUs, ``GlooPair`` two hosts' memories: the same protocol where there is no
GPU. Neither needs or touches a global process group. Sends and receives are matched in the order
in which they are posted; the sender is rank 0.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, Store

from services.kv_transfer.links.errors import LinkBroken

SENDER, RECEIVER = 0, 1
TAG = 0
SPIN_S = 0.002  # how long a wait looks often
OFTEN_S, SELDOM_S = 20e-6, 500e-6
QUIESCE_S = 5.0
_environment = threading.Lock()


class Rooms:
    """Lets in many of one kind, or of the other, but not of both at once. Whoever has waited for
    ``patience_s`` goes in all the same."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._inside: Counter[str] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def inside(self, kind: str) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: set(+self._inside) <= {kind}, self._patience_s)
            self._inside[kind] += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside[kind] -= 1
                self._changed.notify_all()


# NCCL crashed when one thread made a communicator while another aborted one of the same GPU.
making_or_breaking = Rooms(patience_s=3.0)


class Flight(Protocol):
    def wait(self, timeout_s: float, is_over: Callable[[], bool]) -> None:
        """Returns when the bytes are there (receive) or gone (send). Raises LinkBroken when they
        are not in time, or the link is over."""


class Pair(Protocol):
    def send(self, tensor: torch.Tensor) -> Flight: ...

    def receive(self, tensor: torch.Tensor) -> Flight: ...

    def abort(self) -> bool:
        """End what is posted. True: nothing reads or writes the tensors any more."""


class GlooFlight:
    def __init__(self, work: torch.distributed.Work) -> None:
        self._work = work

    def wait(self, timeout_s: float, is_over: Callable[[], bool]) -> None:
        try:
            self._work.wait(timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise LinkBroken(f"gloo: {str(error).splitlines()[0]}") from error


class GlooPair:
    def __init__(self, store: Store, rank: int, device: torch.device, timeout_s: float) -> None:
        self._peer = 1 - rank
        timeout = timedelta(seconds=timeout_s)
        self._group = ProcessGroupGloo(PrefixStore("pair", store), rank, 2, timeout)

    def send(self, tensor: torch.Tensor) -> GlooFlight:
        return GlooFlight(self._group.send([tensor], self._peer, TAG))

    def receive(self, tensor: torch.Tensor) -> GlooFlight:
        return GlooFlight(self._group.recv([tensor], self._peer, TAG))

    def abort(self) -> bool:
        """The peer ends its side as well, and both notice."""
        del self._group
        return True


class NcclFlight:
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def wait(self, timeout_s: float, is_over: Callable[[], bool]) -> None:
        """Looks again and again: a wait inside the driver could not be called off."""
        started = time.monotonic()
        while not self._event.query():
            waited_s = time.monotonic() - started
            if is_over():
                raise LinkBroken("the link ended under a transfer")
            if waited_s > timeout_s:
                raise LinkBroken(f"nccl: nothing moved for {timeout_s:g} s")
            time.sleep(OFTEN_S if waited_s < SPIN_S else SELDOM_S)


class NcclPair:
    """Own stream; every operation is queued and never waited for on the host."""

    def __init__(self, store: Store, rank: int, device: torch.device, timeout_s: float) -> None:
        from torch.distributed import ProcessGroupNCCL

        self._peer = 1 - rank
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1)
        options = ProcessGroupNCCL.Options(is_high_priority_stream=True)
        options._timeout = timedelta(days=1)  # our own watchdog is quicker, and kills nobody
        with _no_suicide():
            self._group = ProcessGroupNCCL(PrefixStore("pair", store), rank, 2, options)

    def send(self, tensor: torch.Tensor) -> NcclFlight:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._group.send([tensor], self._peer, TAG).wait()
            return self._mark()

    def receive(self, tensor: torch.Tensor) -> NcclFlight:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._group.recv([tensor], self._peer, TAG).wait()
            return self._mark()

    def _mark(self) -> NcclFlight:
        event = torch.cuda.Event()
        event.record(self._stream)
        return NcclFlight(event)

    def abort(self) -> bool:
        with making_or_breaking.inside("break"):
            self._group.abort()
        give_up = time.monotonic() + QUIESCE_S
        while not self._stream.query():
            if time.monotonic() > give_up:
                return False
            time.sleep(SELDOM_S)
        return True


@contextmanager
def _no_suicide() -> Iterator[None]:
    """torch's watchdogs end the whole process when a peer dies; a link must not. They read these
    variables when a group is made."""
    wanted = {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
        "TORCH_NCCL_ENABLE_MONITORING": "0",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    }
    with _environment:
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


MakePair = Callable[[Store, int, torch.device, float], Pair]
