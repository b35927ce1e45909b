"""Names for prompt prefixes: equal beginnings of prompts have equal chunk hashes. Pure.

A prompt is taken in chunks of whole KV blocks; a chunk's hash covers everything before it and the
request's cache salt. Instances tell which chunks they hold, schedulers hash the prompts they place.
"""

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b

from shared.schemas.message import PackedTokens

HASH_BYTES = 8
LEAST_CHUNK_TOKENS = 64
WINDOW_CHUNKS = 8
BYTES_PER_TOKEN = 4


def blocks_per_chunk(block_size: int) -> int:
    """Whole blocks that make at least ``LEAST_CHUNK_TOKENS``."""
    return -(-LEAST_CHUNK_TOKENS // block_size)


def chunk_tokens(block_size: int) -> int:
    return block_size * blocks_per_chunk(block_size)


@lru_cache(maxsize=256)
def root_hash(cache_salt: str | None) -> bytes:
    """What the first chunk's hash goes on from."""
    salt = (cache_salt or "").encode()
    return blake2b(salt, digest_size=HASH_BYTES).digest()


def next_hash(before: bytes, chunk: PackedTokens) -> bytes:
    """Of the chunk behind everything that ``before`` covers."""
    return blake2b(before + chunk, digest_size=HASH_BYTES).digest()


def chunk_hashes(
    tokens: PackedTokens, num_chunk_tokens: int, cache_salt: str | None = None
) -> Iterator[bytes]:
    """Hashes of the prompt's whole chunks; lazily, as most prompts share little."""
    known, step = root_hash(cache_salt), BYTES_PER_TOKEN * num_chunk_tokens
    end, window = len(tokens) // step * step, WINDOW_CHUNKS * step
    for start in range(0, end, window):
        hashes = _window_hashes(known, tokens[start : min(start + window, end)], step)
        yield from hashes
        known = hashes[-1]


@lru_cache(maxsize=4096)
def _window_hashes(before: bytes, chunks: PackedTokens, step: int) -> tuple[bytes, ...]:
    """Of several chunks in a row. Kept, some 10 MB in all: what prompts share comes again and
    again, and finding it here takes a sixth of the time."""
    hashes = []
    for start in range(0, len(chunks), step):
        before = next_hash(before, chunks[start : start + step])
        hashes.append(before)
    return tuple(hashes)


def pack_hashes(hashes: list[bytes]) -> bytes:
    return b"".join(hashes)


def unpack_hashes(packed: bytes) -> list[bytes]:
    """Inverse of ``pack_hashes``; raises ValueError when the length is no multiple of eight."""
    if len(packed) % HASH_BYTES:
        raise ValueError(f"{len(packed)} bytes are no whole number of hashes")
    return [packed[i : i + HASH_BYTES] for i in range(0, len(packed), HASH_BYTES)]
