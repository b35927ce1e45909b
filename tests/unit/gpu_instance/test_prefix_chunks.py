"""From cached blocks to prefix chunks: what is told is what is held, whatever comes and goes."""

from hypothesis import given
from hypothesis import strategies as st

from services.gpu_instance.prefix_chunks import PrefixChunks
from services.gpu_instance.prefix_log import PrefixLog
from shared.prefixes import chunk_hashes, unpack_hashes
from shared.schemas.message import pack_tokens

BLOCK = 32
PROMPT = list(range(200))
CHUNKS = list(chunk_hashes(pack_tokens(PROMPT), 64))


def store(
    chunks: PrefixChunks, first: int, last: int, tokens: list[int] = PROMPT, salt: str | None = None
) -> None:
    """Blocks [first, last) of a prompt, named by what they and those before them hold."""
    names = [(salt, *tokens[: (n + 1) * BLOCK]) for n in range(first, last)]
    parent = (salt, *tokens[: first * BLOCK]) if first else None
    chunks.stored(names, parent, tokens[first * BLOCK : last * BLOCK], salt)


def test_whole_chunks_are_told_as_schedulers_name_them() -> None:
    chunks = PrefixChunks(BLOCK)
    store(chunks, 0, 3)
    changes = chunks.take()
    assert changes is not None and changes.added == CHUNKS[:1]
    store(chunks, 3, 6)
    changes = chunks.take()
    assert changes is not None and changes.added == CHUNKS[1:]
    assert chunks.take() is None


def test_a_salt_is_part_of_the_name() -> None:
    chunks = PrefixChunks(BLOCK)
    store(chunks, 0, 2, salt="s")
    changes = chunks.take()
    assert changes is not None
    assert changes.added == list(chunk_hashes(pack_tokens(PROMPT[:64]), 64, "s"))


def test_a_chunk_is_held_until_the_last_copy_of_its_last_block_is_gone() -> None:
    chunks = PrefixChunks(BLOCK)
    store(chunks, 0, 2)
    store(chunks, 0, 2)
    chunks.take()
    last = (None, *PROMPT[:64])
    chunks.removed([last])
    assert chunks.take() is None
    chunks.removed([last])
    changes = chunks.take()
    assert changes is not None and changes.removed == CHUNKS[:1]


def test_what_follows_an_unknown_block_has_no_name() -> None:
    chunks = PrefixChunks(BLOCK)
    store(chunks, 2, 4)
    chunks.removed(["never seen"])
    assert chunks.take() is None and len(chunks) == 0


def test_clearing_is_told_even_though_something_was_stored_before() -> None:
    chunks = PrefixChunks(BLOCK)
    store(chunks, 0, 2)
    chunks.cleared()
    changes = chunks.take()
    assert changes is not None and changes.cleared and not changes.added


STEPS = st.lists(
    st.tuples(st.sampled_from(["store", "remove", "clear", "take"]), st.integers(0, 3)),
    max_size=40,
)


@given(STEPS)
def test_who_follows_the_updates_knows_what_is_held(steps: list[tuple[str, int]]) -> None:
    prompts = [PROMPT, PROMPT[:64] + [7] * 64, [9] * 128, PROMPT[:128] + [8] * 64]
    chunks, log = PrefixChunks(BLOCK), PrefixLog("i", 64)
    stored: list[tuple[object, ...]] = []
    followed: set[bytes] = set()

    def follow() -> None:
        changes = chunks.take()
        if changes is not None:
            update = log.apply(changes)
            if update.is_whole:
                followed.clear()
            followed.difference_update(unpack_hashes(update.removed))
            followed.update(unpack_hashes(update.added))

    for what, number in steps:
        tokens = prompts[number]
        if what == "store":
            store(chunks, 0, len(tokens) // BLOCK, tokens)
            stored += [(None, *tokens[: (n + 1) * BLOCK]) for n in range(len(tokens) // BLOCK)]
        elif what == "remove" and stored:
            chunks.removed([stored.pop()])
        elif what == "clear":
            chunks.cleared()
            stored.clear()
        else:
            follow()
    follow()
    left = {name[1:] for name in stored}
    held = {
        chunk
        for tokens in prompts
        for n, chunk in enumerate(chunk_hashes(pack_tokens(tokens), 64))
        if tuple(tokens[: 64 * (n + 1)]) in left
    }
    assert followed == held == set(unpack_hashes(log.whole().added))
