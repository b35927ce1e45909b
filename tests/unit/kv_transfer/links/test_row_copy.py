"""The copy kernels, in Triton's interpreter, against plain indexing."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from services.kv_transfer.links import row_copy

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def interpreted() -> ModuleType:
    """The module once more, with kernels that run on CPU."""
    spec = importlib.util.spec_from_file_location("row_copy_interpreted", row_copy.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    vars(module).update(BLOCK_WORDS=16, PROGRAM_WORDS=32)
    return module


def caches(num_layers: int, row_bytes: int, gap: int) -> list[torch.Tensor]:
    wide = [
        torch.randint(0, 256, (9, row_bytes + gap), dtype=torch.uint8) for _ in range(num_layers)
    ]
    return [layer[:, :row_bytes] for layer in wide]


@pytest.mark.parametrize("row_bytes", [128, 144, 512, 1040])
@pytest.mark.parametrize("gap", [0, 64])
def test_rows_come_out_and_go_in_as_with_indexing(
    interpreted: ModuleType, row_bytes: int, gap: int
) -> None:
    layers = caches(3, row_bytes, gap)
    copier = interpreted.copier_of(layers)
    assert type(copier).__name__ == "TritonRows"
    chunk = torch.empty((3, 4, row_bytes), dtype=torch.uint8)
    copier.gather(0, torch.tensor([7, 0, 3, 8]), chunk)
    assert torch.equal(chunk, torch.stack([layer[[7, 0, 3, 8]] for layer in layers]))
    before = [layer.clone() for layer in layers]
    copier.scatter(1, torch.tensor([2, 5, 1, 6]), chunk[1:])
    for i, layer in enumerate(layers):
        expected = before[i].clone()
        if i:
            expected[[2, 5, 1, 6]] = chunk[i]
        assert torch.equal(layer, expected)


@pytest.mark.parametrize("row_bytes", [100, 8])
def test_rows_that_are_no_whole_vectors_are_copied_plainly(row_bytes: int) -> None:
    layers = caches(2, row_bytes, 0)
    copier = row_copy.copier_of(layers)
    assert isinstance(copier, row_copy.PlainRows)
    chunk = torch.empty((2, 2, row_bytes), dtype=torch.uint8)
    copier.gather(0, torch.tensor([4, 1]), chunk)
    copier.scatter(0, torch.tensor([0, 2]), chunk)
    assert all(torch.equal(layer[[0, 2]], layer[[4, 1]]) for layer in layers)
