"""What a scheduler knows of prefix caches: right after a loss, gone with the instance."""

from services.global_sched.prefixes import ASK_AGAIN_S, PrefixKnowledge
from shared.prefixes import chunk_hashes, pack_hashes
from shared.schemas.prefix import PrefixUpdate
from tests.unit.global_sched.pool_stage import instance, question

REQUEST = question(prompt=200).request
CHUNKS = list(chunk_hashes(REQUEST.prompt_token_ids, 64))


def update(sequence: int, **changes: object) -> PrefixUpdate:
    fields = {"instance_id": "a", "sequence": sequence, "chunk_tokens": 64}
    return PrefixUpdate.model_validate(fields | changes)


def knowing(*updates: PrefixUpdate) -> PrefixKnowledge:
    knowledge = PrefixKnowledge()
    assert knowledge.on_record("a", None, instance("a"), 0.0)
    for each in updates:
        knowledge.on_update(each, 0.0)
    return knowledge


def whole(sequence: int, *chunks: bytes) -> PrefixUpdate:
    return update(sequence, is_whole=True, added=pack_hashes(list(chunks)))


def test_changes_follow_the_whole() -> None:
    knowledge = knowing(whole(4, CHUNKS[0]), update(5, added=CHUNKS[1]))
    assert knowledge.cached_tokens(REQUEST) == {"a": 128}
    knowledge.on_update(update(6, removed=CHUNKS[1]), 0.0)
    assert knowledge.cached_tokens(REQUEST) == {"a": 64}


def test_after_a_lost_update_nothing_is_believed_until_the_whole_has_come() -> None:
    knowledge = knowing(whole(1, *CHUNKS))
    assert not knowledge.on_update(update(3), 0.5), "it was asked half a second ago"
    assert knowledge.cached_tokens(REQUEST) == {}
    assert knowledge.on_update(update(4), ASK_AGAIN_S)
    knowledge.on_update(whole(5, *CHUNKS), 1.0)
    assert knowledge.cached_tokens(REQUEST) == {"a": 192}


def test_a_cleared_cache_is_told_as_an_empty_whole() -> None:
    knowledge = knowing(whole(1, *CHUNKS), whole(2))
    assert knowledge.cached_tokens(REQUEST) == {}


def test_an_instance_that_left_or_was_restarted_holds_nothing() -> None:
    record = instance("a")
    knowledge = knowing(whole(1, *CHUNKS))
    assert not knowledge.on_record("a", record, instance("a", state="draining"), 9.0)
    assert knowledge.cached_tokens(REQUEST)
    assert knowledge.on_record("a", record, instance("a", started_s=5.0), 9.0)
    assert knowledge.cached_tokens(REQUEST) == {}
    knowledge.on_update(whole(1, *CHUNKS), 9.0)
    assert not knowledge.on_record("a", record, None, 9.0)
    assert knowledge.cached_tokens(REQUEST) == {} and knowledge.index.num_held == 0
    knowledge.on_update(whole(2, *CHUNKS), 9.0)
    assert knowledge.index.num_held == 0, "its last words are not kept"


def test_a_cache_salt_keeps_prompts_apart() -> None:
    knowledge = knowing(whole(1, *CHUNKS))
    salted = REQUEST.model_copy(update={"cache_salt": "mine"})
    assert knowledge.cached_tokens(salted) == {}


def test_a_resumed_request_is_looked_up_with_what_it_has_made() -> None:
    resumed = REQUEST.model_copy(
        update={
            "prompt_token_ids": REQUEST.prompt_token_ids[: 4 * 100],
            "output_token_ids": REQUEST.prompt_token_ids[4 * 100 :],
        }
    )
    assert knowing(whole(1, *CHUNKS)).cached_tokens(resumed) == {"a": 192}


def test_chunks_of_another_length_are_not_mixed_in() -> None:
    knowledge = knowing(update(1, is_whole=True, chunk_tokens=128, added=pack_hashes(CHUNKS)))
    assert knowledge.index.num_held == 0
