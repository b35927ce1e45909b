"""Rows of the cache, and the spans a chunk is cut into."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.kv_transfer.links.pages import HostPages, check_layers, cut_chunk


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 400))
def test_spans_cover_a_chunk_in_byte_order_within_the_limit(
    num_layers: int, num_rows: int, block_bytes: int, limit: int
) -> None:
    cells = []
    for span in cut_chunk(num_layers, num_rows, block_bytes, limit):
        nbytes = span.num_layers * span.num_rows * block_bytes
        assert nbytes <= max(limit, block_bytes)
        assert span.num_layers == 1 or span.num_rows == num_rows  # dense in the chunk
        for layer in range(span.layer, span.layer + span.num_layers):
            cells += [(layer, row) for row in range(span.row, span.row + span.num_rows)]
    assert cells == [(layer, row) for layer in range(num_layers) for row in range(num_rows)]


def test_what_is_gathered_can_be_scattered_elsewhere() -> None:
    layers = [torch.randint(0, 256, (8, 24), dtype=torch.uint8) for _ in range(3)]
    pages = HostPages(layers)
    out = torch.empty((3, 2, 24), dtype=torch.uint8)
    assert pages.gather([6, 1], out, 1) == [], "nothing to wait for"
    pages.scatter(0, [0, 3], out)
    assert all(torch.equal(layer[[0, 3]], layer[[6, 1]]) for layer in layers)


def test_rows_with_gaps_between_them_are_served() -> None:
    wide = torch.zeros((4, 2, 16), dtype=torch.uint8)
    pages = HostPages([wide[:, 0], wide[:, 1]])
    pages.scatter(1, [2], torch.full((1, 1, 16), 7, dtype=torch.uint8))
    assert wide[2, 1].eq(7).all() and int(wide.sum()) == 7 * 16


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "no KV layers"),
        ([torch.zeros(4, 4)], "uint8"),
        ([torch.zeros((4, 4), dtype=torch.uint8).t()[:, ::2]], "dense rows"),
        (
            [torch.zeros((4, 4), dtype=torch.uint8), torch.zeros((5, 4), dtype=torch.uint8)],
            "(5, 4)",
        ),
    ],
)
def test_other_shapes_are_refused(layers: list[torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        check_layers(layers)
    assert message in str(refusal.value)
