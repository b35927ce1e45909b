"""The KV cache of one worker as rows of bytes: whole blocks out (gather) and in (scatter)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

Fence = Callable[[], None]
Bytes = npt.NDArray[np.uint8]


class KvPages(Protocol):
    """What the port needs of a KV cache. Chunks are [layers, blocks, block_bytes], in the device's
    memory or in the host's. ``gather`` runs on the engine's thread and must not wait for the
    device: it gives a fence for each run of layers (see ``layer_runs``), or one for all of them,
    or none when all is there; threads of the port wait for those. ``scatter`` runs on a link's
    thread and returns when the rows are written."""

    device: torch.device
    num_layers: int
    num_blocks: int
    block_bytes: int

    def gather(
        self, block_ids: Sequence[int], out: torch.Tensor, piece_bytes: int
    ) -> list[Fence]: ...

    def scatter(self, first_layer: int, block_ids: Sequence[int], rows: torch.Tensor) -> None: ...

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        """Host memory that ``scatter`` takes rows from quickly."""


class HostPages:
    """KV cache in host memory."""

    def __init__(self, layers: Sequence[torch.Tensor]) -> None:
        check_layers(layers)
        self._layers = list(layers)
        # Plain index_copy_ of bytes goes one byte at a time (1.2 GB/s); NumPy copies whole rows.
        self._rows: list[Bytes] = [layer.numpy() for layer in layers]
        self.device = torch.device("cpu")
        self.num_layers = len(layers)
        self.num_blocks, self.block_bytes = layers[0].shape

    def gather(self, block_ids: Sequence[int], out: torch.Tensor, piece_bytes: int) -> list[Fence]:
        index = torch.tensor(block_ids, dtype=torch.int64)
        for layer, rows in zip(self._layers, out, strict=True):
            torch.index_select(layer, 0, index, out=rows)
        return []

    def scatter(self, first_layer: int, block_ids: Sequence[int], rows: torch.Tensor) -> None:
        index = np.asarray(block_ids, dtype=np.int64)
        for layer, part in enumerate(rows, first_layer):
            self._rows[layer][index] = part.numpy()

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)


def check_layers(layers: Sequence[torch.Tensor]) -> None:
    """Raise unless all layers are equal uint8 matrices with dense rows."""
    if not layers:
        raise ValueError("no KV layers")
    shape, device = layers[0].shape, layers[0].device
    for i, layer in enumerate(layers):
        if layer.dtype != torch.uint8 or layer.dim() != 2 or layer.stride(1) != 1:
            raise ValueError(f"layer {i}: want a uint8 matrix with dense rows")
        if layer.shape != shape or layer.device != device:
            raise ValueError(
                f"layer {i} is {tuple(layer.shape)} on {layer.device}, "
                f"layer 0 {tuple(shape)} on {device}"
            )


@dataclass(frozen=True)
class Span:
    """Part of a chunk [num_layers, n, block_bytes]: some rows of a run of layers. It is dense in
    the chunk: either whole layers, or rows of one layer."""

    layer: int
    num_layers: int
    row: int
    num_rows: int


def layer_runs(num_layers: int, num_rows: int, block_bytes: int, limit: int) -> Iterator[Span]:
    """Spans of whole layers, each at most ``limit`` bytes or one layer."""
    step = max(1, limit // (num_rows * block_bytes))
    for layer in range(0, num_layers, step):
        yield Span(layer, min(step, num_layers - layer), 0, num_rows)


def cut_chunk(num_layers: int, num_rows: int, block_bytes: int, limit: int) -> Iterator[Span]:
    """Spans in the chunk's byte order, each at most ``limit`` bytes or one block."""
    layer_bytes = num_rows * block_bytes
    if layer_bytes <= limit:
        step = limit // layer_bytes
        for layer in range(0, num_layers, step):
            yield Span(layer, min(step, num_layers - layer), 0, num_rows)
        return
    step = max(1, limit // block_bytes)
    for layer in range(num_layers):
        for row in range(0, num_rows, step):
            yield Span(layer, 1, row, min(step, num_rows - row))
