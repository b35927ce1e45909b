"""The KV cache of one worker on a GPU.

``gather`` queues a few kernels on the engine's current stream, so they are ordered behind the
forward pass that filled the blocks and before whatever reuses them; a fence is an event behind
one. Host memory as target goes over a bounce buffer, so that the engine's stream never waits for
PCIe.
"""

from collections.abc import Sequence

import torch

from services.kv_transfer.links.pages import Fence, HostPages, KvPages, check_layers, layer_runs
from services.kv_transfer.links.row_copy import copier_of

URGENT = -1  # stream priority: a few copies go before the forward pass's next kernels


def pages_of(layers: Sequence[torch.Tensor]) -> KvPages:
    """The cache where it is."""
    return CudaPages(layers) if layers and layers[0].is_cuda else HostPages(layers)


class CudaPages:
    def __init__(self, layers: Sequence[torch.Tensor]) -> None:
        check_layers(layers)
        self.device = layers[0].device
        self.num_layers = len(layers)
        self.num_blocks, self.block_bytes = layers[0].shape
        with torch.cuda.device(self.device):
            self._copier = copier_of(layers)
            self._out = torch.cuda.Stream(self.device, URGENT)
            self._in = torch.cuda.Stream(self.device, URGENT)
            self._last_targets: tuple[Sequence[int], torch.Tensor] = ([], torch.empty(0))
            self._compile()

    def _compile(self) -> None:
        """Build the kernels now: block 0 goes out and back in as it is."""
        shape = (self.num_layers, 1, self.block_bytes)
        chunk = torch.empty(shape, dtype=torch.uint8, device=self.device)
        for fence in self.gather([0], chunk, chunk.numel()):
            fence()
        self.scatter(0, [0], chunk)

    def gather(self, block_ids: Sequence[int], out: torch.Tensor, piece_bytes: int) -> list[Fence]:
        with torch.cuda.device(self.device):
            ids = self._on_device(block_ids)
            if not out.is_cuda:
                return [self._gather_to_host(ids, out)]
            stream = torch.cuda.current_stream()
            fences: list[Fence] = []
            for run in layer_runs(self.num_layers, len(block_ids), self.block_bytes, piece_bytes):
                part = out[run.layer : run.layer + run.num_layers]
                self._copier.gather(run.layer, ids, part)
                fences.append(_event_on(stream).synchronize)
            return fences

    def _gather_to_host(self, ids: torch.Tensor, out: torch.Tensor) -> Fence:
        chunk = torch.empty_like(out, device=self.device)
        self._copier.gather(0, ids, chunk)
        self._out.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._out):
            out.copy_(chunk, non_blocking=True)
        chunk.record_stream(self._out)
        fence: Fence = _event_on(self._out).synchronize
        return fence

    def scatter(self, first_layer: int, block_ids: Sequence[int], rows: torch.Tensor) -> None:
        with torch.cuda.device(self.device), torch.cuda.stream(self._in):
            chunk = rows.to(self.device, non_blocking=True).contiguous()
            self._copier.scatter(first_layer, self._targets(block_ids), chunk)
            _event_on(self._in).synchronize()

    def _targets(self, block_ids: Sequence[int]) -> torch.Tensor:
        """The pieces of a chunk go to the same blocks, one after the other."""
        known, ids = self._last_targets
        if known != block_ids:
            ids = self._on_device(block_ids)
            self._last_targets = (block_ids, ids)
        return ids

    def _on_device(self, block_ids: Sequence[int]) -> torch.Tensor:
        """Pinned memory, because from any other the copy would wait for the stream."""
        pinned = torch.tensor(block_ids, dtype=torch.int64, pin_memory=True)
        return pinned.to(self.device, non_blocking=True)

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


def _event_on(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    return event


def pin(memory: torch.Tensor) -> None:
    """Register host memory that torch did not allocate, so that copies of it run asynchronously.
    Raises RuntimeError where the driver refuses."""
    torch.cuda.check_error(
        torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)
    )


def unpin(memory: torch.Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())


def device_identity(device: torch.device) -> str:
    """Equal for ports on the same GPU, "" on CPU; NCCL cannot join two workers on one GPU."""
    if device.type != "cuda":
        return ""
    return str(torch.cuda.get_device_properties(device).uuid)
