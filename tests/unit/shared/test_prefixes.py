"""Names of prompt prefixes."""

from hypothesis import given
from hypothesis import strategies as st

from shared.prefixes import (
    chunk_hashes,
    chunk_tokens,
    next_hash,
    pack_hashes,
    root_hash,
    unpack_hashes,
)
from shared.schemas.message import pack_tokens

TOKENS = st.lists(st.integers(0, 3), max_size=40)


@given(TOKENS, TOKENS, TOKENS)
def test_prompts_share_as_many_names_as_whole_chunks(
    same: list[int], one: list[int], other: list[int]
) -> None:
    ones, others = same + one, same + other
    hashes = [list(chunk_hashes(pack_tokens(tokens), 4)) for tokens in (ones, others)]
    shared = sum(a == b for a, b in zip(*hashes, strict=False))
    alike = 0
    while (
        alike < min(len(ones), len(others)) // 4
        and ones[: 4 * (alike + 1)] == others[: 4 * (alike + 1)]
    ):
        alike += 1
    assert shared == alike
    assert len(hashes[0]) == len(ones) // 4
    assert unpack_hashes(pack_hashes(hashes[0])) == hashes[0]


def test_a_salt_changes_every_name() -> None:
    tokens = pack_tokens(range(12))
    plain, salted = (list(chunk_hashes(tokens, 4, salt)) for salt in (None, "s"))
    assert not set(plain) & set(salted)


def test_chunks_are_whole_blocks_and_no_shorter_than_needed() -> None:
    assert [chunk_tokens(size) for size in (1, 16, 32, 48, 64, 128)] == [64, 64, 64, 96, 64, 128]


@given(TOKENS, st.one_of(st.none(), st.text(max_size=4)))
def test_names_follow_from_one_chunk_to_the_next(tokens: list[int], salt: str | None) -> None:
    packed, known, one_by_one = pack_tokens(tokens), root_hash(salt), []
    for start in range(0, len(packed) - 7, 8):
        known = next_hash(known, packed[start : start + 8])
        one_by_one.append(known)
    assert list(chunk_hashes(packed, 2, salt)) == one_by_one
