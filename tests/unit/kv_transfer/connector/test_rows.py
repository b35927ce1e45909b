"""vLLM's cache as rows of bytes."""

import pytest
import torch

from services.kv_transfer.connector.rows import block_rows, layer_rows


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3)], ids=["LBHNC", "LBNHC"])
def test_a_row_is_a_block_in_memory_order_whatever_the_layout(order: tuple[int, ...]) -> None:
    shape = (5, 2, 16, 8)  # blocks, heads, tokens, channels as vLLM shows them
    stored = torch.arange(5 * 2 * 16 * 8, dtype=torch.float32)
    stored = stored.view([shape[i] for i in order])
    cache = stored.permute([order.index(i) for i in range(4)])
    assert cache.shape == shape

    rows = block_rows(cache)

    assert rows.shape == (5, 2 * 16 * 8 * 4)
    assert torch.equal(rows.view(torch.float32), stored.flatten(1))
    rows[3].zero_()
    assert not cache[3].any()  # a view, not a copy
    assert cache[2].any()


def test_blocks_with_gaps_between_them_are_rows_too() -> None:
    both_layers = torch.arange(4 * 2 * 6, dtype=torch.float32).view(4, 2, 6)
    rows = block_rows(both_layers[:, 1])
    assert rows.shape == (4, 24)
    assert rows[2].view(torch.float32).tolist() == both_layers[2, 1].tolist()


def test_a_layout_that_scatters_a_block_is_refused_with_the_way_out() -> None:
    scattered = torch.zeros(8, 4, 6)[:, :, ::2]
    with pytest.raises(ValueError, match="VLLM_KV_CACHE_LAYOUT"):
        block_rows(scattered)


def test_layers_come_in_the_order_of_their_numbers() -> None:
    caches = {
        f"model.layers.{i}.attn": torch.full((2, 4), i, dtype=torch.uint8) for i in (10, 9, 0)
    }
    assert [int(rows[0, 0]) for rows in layer_rows(caches)] == [0, 9, 10]
