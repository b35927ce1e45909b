"""Which batches to run: decodes of several counts and contexts, alone and with prompts among them.

Pure. Each batch is some requests that decode together, and prompts that join them one after the
other, so that every batch yields decode-only steps, mixed steps and (at its start) prefill steps.
"""

import random
from dataclasses import dataclass

STEPS_PER_BATCH = 24
PROMPTS_PER_BATCH = 3


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the instance takes, from its registry record."""

    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """``num_decodes`` requests of ``context_tokens``; prompts that join; the tokens of a step."""

    num_decodes: int
    context_tokens: int
    prompts: tuple[int, ...]
    step_tokens: int

    @property
    def kv_tokens(self) -> int:
        return self.num_decodes * (self.context_tokens + 4 * STEPS_PER_BATCH) + sum(self.prompts)


def design(limits: EngineLimits, seed: int = 0) -> list[Batch]:
    """Batches that span what the engine can hold, cheapest first: a time limit cuts off the
    largest ones only. None exceeds the limits."""
    shuffled = random.Random(seed)
    step_tokens = _powers(64, limits.max_num_batched_tokens, 4)
    batches = []
    for num_decodes in _powers(1, limits.max_num_seqs - PROMPTS_PER_BATCH, 4):
        for context in _powers(32, limits.max_model_len - 4 * STEPS_PER_BATCH - 1, 4):
            tokens = shuffled.choice([t for t in step_tokens if t > num_decodes] or step_tokens)
            prompts = _prompts(min(4 * tokens, limits.max_model_len - 2), shuffled)
            batches.append(Batch(num_decodes, context, prompts, tokens))
    return sorted((b for b in batches if _fits(b, limits)), key=lambda b: b.kv_tokens)


def _prompts(longest: int, shuffled: random.Random) -> tuple[int, ...]:
    return tuple(shuffled.randint(16, max(16, longest)) for _ in range(PROMPTS_PER_BATCH))


def _powers(first: int, last: int, factor: int) -> list[int]:
    values, value = [], first
    while value < last:
        values.append(value)
        value *= factor
    return [*values, max(1, last)]


def _fits(batch: Batch, limits: EngineLimits) -> bool:
    return (
        batch.kv_tokens <= 0.8 * limits.kv_tokens
        and batch.num_decodes + len(batch.prompts) <= limits.max_num_seqs
        and batch.step_tokens > batch.num_decodes
    )
