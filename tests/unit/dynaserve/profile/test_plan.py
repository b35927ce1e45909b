"""Batches that `dynaserve profile` runs."""

from hypothesis import given
from hypothesis import strategies as st

from dynaserve.profile.plan import PROMPTS_PER_BATCH, STEPS_PER_BATCH, EngineLimits, design

LIMITS = st.builds(
    EngineLimits,
    max_num_seqs=st.integers(4, 1024),
    max_model_len=st.integers(256, 131_072),
    max_num_batched_tokens=st.integers(128, 16_384),
    kv_tokens=st.integers(4096, 2_000_000),
)


@given(LIMITS)
def test_no_batch_exceeds_what_the_engine_takes(limits: EngineLimits) -> None:
    for batch in design(limits):
        assert batch.num_decodes + PROMPTS_PER_BATCH <= limits.max_num_seqs
        assert batch.context_tokens + 4 * STEPS_PER_BATCH < limits.max_model_len
        assert max(batch.prompts) + 2 <= limits.max_model_len
        assert batch.num_decodes < batch.step_tokens <= limits.max_num_batched_tokens
        assert batch.kv_tokens <= limits.kv_tokens


def test_batches_span_decodes_and_contexts_cheapest_first() -> None:
    batches = design(EngineLimits(256, 2048, 2048, 100_000))
    assert {1, 4, 16, 64} <= {batch.num_decodes for batch in batches}
    assert {32, 128, 512} <= {batch.context_tokens for batch in batches}
    assert len({batch.step_tokens for batch in batches}) > 2
    assert [b.kv_tokens for b in batches] == sorted(b.kv_tokens for b in batches)
