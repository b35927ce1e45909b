"""The arena: bounded, without overlap, and words that tell a valid slab from a reused one."""

import mmap
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.kv_transfer.links.pages import HostPages
from services.kv_transfer.links.staging import ALIGN, Extents, SharedArena, Staging, read_token


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60)), max_size=60))
def test_extents_never_overlap_and_come_back_whole(steps: list[tuple[bool, int]]) -> None:
    extents = Extents(200)
    held: list[tuple[int, int]] = []
    for take, size in steps:
        if take:
            offset = extents.take(size)
            if offset is not None:
                assert all(offset + size <= o or o + n <= offset for o, n in held)
                assert offset + size <= 200
                held.append((offset, size))
        elif held:
            extents.give(*held.pop(size % len(held)))
        assert extents.in_use == sum(n for _, n in held)
    for offset, size in held:
        extents.give(offset, size)
    assert extents.take(200) == 0


def test_a_slab_is_free_once_however_often_it_is_freed() -> None:
    arena = SharedArena(4096)
    slab = arena.reserve(100)
    assert slab is not None and arena.in_use == ALIGN + 2 * ALIGN
    slab.free()
    slab.free()
    assert arena.in_use == 0
    arena.close()


def test_the_token_stands_while_the_slab_is_valid() -> None:
    arena = SharedArena(4096)
    seen = mmap.mmap(os.dup(arena.fd), 4096)  # as the receiver maps it
    slab = arena.reserve(100)
    assert slab is not None and read_token(seen, slab.offset) == slab.token
    slab.free()
    assert read_token(seen, slab.offset) != slab.token
    again = arena.reserve(100)
    assert again is not None and again.token != slab.token
    seen.close()
    arena.close()


def test_staging_is_bounded_and_gathers_layer_by_layer() -> None:
    layers = [torch.randint(0, 256, (8, 64), dtype=torch.uint8) for _ in range(2)]
    arena = SharedArena(2 * (ALIGN + 2 * 64))
    staging = Staging(HostPages(layers), arena, 1)
    first, second = staging.stage([3]), staging.stage([5])
    assert first is not None and second is not None and staging.stage([1]) is None
    expected = torch.stack([layer[[5]] for layer in layers])
    assert torch.equal(second.tensor().view(2, 1, 64), expected)
    first.free()
    assert staging.stage([1]) is not None
    arena.close()


def test_the_largest_chunk_named_does_fit() -> None:
    pages = HostPages([torch.zeros((64, 48), dtype=torch.uint8)])
    arena = SharedArena(1000)
    staging = Staging(pages, arena, 1)
    slab = staging.stage(range(staging.max_blocks))
    assert slab is not None
    slab.free()
    arena.close()


def test_staging_too_small_for_a_block_is_refused() -> None:
    arena = SharedArena(4096)
    with pytest.raises(ValueError, match="cannot hold one block of 1 layers, 8192 bytes"):
        Staging(HostPages([torch.zeros((2, 8192), dtype=torch.uint8)]), arena, 1)
    arena.close()


def test_nothing_has_a_name_in_the_file_system() -> None:
    before = set(os.listdir("/dev/shm"))
    arena = SharedArena(4096)
    assert set(os.listdir("/dev/shm")) <= before
    arena.close()
