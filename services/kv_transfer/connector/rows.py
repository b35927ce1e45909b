"""vLLM's KV cache as rows of bytes: one matrix a layer, one row a block.

Every layout that vLLM has keeps a block of one layer in one contiguous piece once the dimensions
are put in stride order; where it does not (blocks of all layers interleaved) the view is refused.
"""

import torch


def block_rows(cache: torch.Tensor) -> torch.Tensor:
    """A layer's cache [num_blocks, ...] of any dtype -> uint8 view [num_blocks, block_bytes].

    Raises ValueError when one block is not one contiguous piece of memory.
    """
    inner = sorted(range(1, cache.dim()), key=cache.stride, reverse=True)
    ordered = cache.permute(0, *inner)
    if not ordered[0].is_contiguous():
        raise ValueError(
            f"KV layout with strides {cache.stride()} does not keep a block together; "
            "set VLLM_KV_CACHE_LAYOUT to LBNHC or LBHNC"
        )
    rows = ordered.flatten(1) if ordered.is_contiguous() else _strided_rows(ordered)
    return rows.view(torch.uint8)


def _strided_rows(ordered: torch.Tensor) -> torch.Tensor:
    """Blocks that are contiguous each, with gaps between them (all layers of a block together)."""
    return ordered.as_strided(
        (ordered.shape[0], ordered[0].numel()), (ordered.stride(0), 1), ordered.storage_offset()
    )


def layer_rows(caches: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """All layers in a fixed order (by name, numbers by value), each as ``block_rows``."""
    return [block_rows(caches[name]) for name in sorted(caches, key=_layer_order)]


def _layer_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
