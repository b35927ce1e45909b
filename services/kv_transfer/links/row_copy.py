"""Copies of whole rows between many matrices and one dense chunk, in one kernel launch.

The matrices are the layers of a KV cache on a GPU, the rows its blocks. Launching a copy a layer
costs the engine's thread half a millisecond a chunk; here one Triton kernel finds the layers
through a table of their addresses.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

try:
    import triton  # type: ignore[import-untyped]
    import triton.language as tl  # type: ignore[import-untyped]
except ImportError:  # the plain copier does it
    triton = None

WORD_BYTES = 8
BLOCK_WORDS = 1024  # 8 KiB at a time by four warps: four 16-byte vectors a thread
PROGRAM_WORDS = 4 * BLOCK_WORDS  # what one program copies of a row


class RowCopier(Protocol):
    """``chunk`` is [layers, n, row_bytes], dense; ``ids`` int64 [n] on the same device. Everything
    runs on the current stream; nothing waits for it."""

    def gather(self, first_layer: int, ids: torch.Tensor, chunk: torch.Tensor) -> None: ...

    def scatter(self, first_layer: int, ids: torch.Tensor, chunk: torch.Tensor) -> None: ...


def copier_of(layers: Sequence[torch.Tensor]) -> RowCopier:
    """The best copier for these matrices."""
    if triton is not None and all(_in_words(layer) for layer in layers):
        return TritonRows(layers)
    return PlainRows(layers)


def _in_words(layer: torch.Tensor) -> bool:
    """Vectors of 16 bytes need it twice as coarse."""
    return not any(
        number % (2 * WORD_BYTES) for number in (layer.shape[1], layer.stride(0), layer.data_ptr())
    )


class PlainRows:
    """One indexed copy a layer."""

    def __init__(self, layers: Sequence[torch.Tensor]) -> None:
        self._layers = list(layers)

    def gather(self, first_layer: int, ids: torch.Tensor, chunk: torch.Tensor) -> None:
        for layer, rows in enumerate(chunk, first_layer):
            torch.index_select(self._layers[layer], 0, ids, out=rows)

    def scatter(self, first_layer: int, ids: torch.Tensor, chunk: torch.Tensor) -> None:
        for layer, rows in enumerate(chunk, first_layer):
            self._layers[layer].index_copy_(0, ids, rows)


class TritonRows:
    """One launch for all layers."""

    def __init__(self, layers: Sequence[torch.Tensor]) -> None:
        if len({layer.stride(0) for layer in layers}) != 1:
            raise ValueError("layers differ in the distance of their blocks")
        pointers = [layer.data_ptr() for layer in layers]
        self._layers = list(layers)  # keeps the memory behind the table
        self._table = torch.tensor(pointers, dtype=torch.int64, device=layers[0].device)
        self._row_words = layers[0].shape[1] // WORD_BYTES
        self._stride_words = layers[0].stride(0) // WORD_BYTES

    def gather(self, first_layer: int, ids: torch.Tensor, chunk: torch.Tensor) -> None:
        self._launch(_gather_rows, first_layer, ids, chunk)

    def scatter(self, first_layer: int, ids: torch.Tensor, chunk: torch.Tensor) -> None:
        self._launch(_scatter_rows, first_layer, ids, chunk)

    def _launch(
        self,
        kernel: "triton.JITFunction[object]",
        first_layer: int,
        ids: torch.Tensor,
        chunk: torch.Tensor,
    ) -> None:
        programs_a_row = -(-self._row_words // PROGRAM_WORDS)
        kernel[(len(ids) * programs_a_row, chunk.shape[0])](
            self._table,
            ids,
            chunk.view(torch.int64),
            first_layer,
            len(ids),
            self._stride_words,
            self._row_words,
            PROGRAM_WORDS=PROGRAM_WORDS,
            BLOCK_WORDS=BLOCK_WORDS,
        )


if triton is not None:
    # A row is copied by several programs where it is long; each finds its own part.

    @triton.jit(do_not_specialize=["first_layer", "num_rows"])  # type: ignore[untyped-decorator]
    def _gather_rows(  # type: ignore[no-untyped-def]
        table,
        ids,
        chunk,
        first_layer,
        num_rows,
        stride_words,
        row_words,
        PROGRAM_WORDS: tl.constexpr,
        BLOCK_WORDS: tl.constexpr,
    ):
        row = tl.program_id(0) % num_rows
        start = (tl.program_id(0) // num_rows) * PROGRAM_WORDS
        layer = tl.program_id(1)
        base = tl.load(table + first_layer + layer).to(tl.pointer_type(tl.int64))
        base = tl.multiple_of(base, 16)
        source = base + tl.load(ids + row) * stride_words
        target = chunk + (layer.to(tl.int64) * num_rows + row) * row_words
        for at in tl.static_range(0, PROGRAM_WORDS, BLOCK_WORDS):
            words = start + at + tl.arange(0, BLOCK_WORDS)
            inside = words < row_words
            tl.store(target + words, tl.load(source + words, mask=inside), mask=inside)

    @triton.jit(do_not_specialize=["first_layer", "num_rows"])  # type: ignore[untyped-decorator]
    def _scatter_rows(  # type: ignore[no-untyped-def]
        table,
        ids,
        chunk,
        first_layer,
        num_rows,
        stride_words,
        row_words,
        PROGRAM_WORDS: tl.constexpr,
        BLOCK_WORDS: tl.constexpr,
    ):
        row = tl.program_id(0) % num_rows
        start = (tl.program_id(0) // num_rows) * PROGRAM_WORDS
        layer = tl.program_id(1)
        base = tl.load(table + first_layer + layer).to(tl.pointer_type(tl.int64))
        base = tl.multiple_of(base, 16)
        target = base + tl.load(ids + row) * stride_words
        source = chunk + (layer.to(tl.int64) * num_rows + row) * row_words
        for at in tl.static_range(0, PROGRAM_WORDS, BLOCK_WORDS):
            words = start + at + tl.arange(0, BLOCK_WORDS)
            inside = words < row_words
            tl.store(target + words, tl.load(source + words, mask=inside), mask=inside)
