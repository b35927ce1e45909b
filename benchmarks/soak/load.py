"""The requests of a soak. Pure: the same seed gives the same load."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SHARE_CANCELLED = 1 / 3
MAX_PROMPT = 300
MAX_OUTPUT = 40


@dataclass(frozen=True)
class SoakRequest:
    """``cancel_at``: when the client leaves, as a share of the usual duration; None: it stays."""

    prompt: tuple[int, ...]
    max_tokens: int
    cut: int
    cancel_at: float | None


def make_load(count: int, seed: int, vocabulary: Sequence[int]) -> Iterator[SoakRequest]:
    """``count`` requests, each cut somewhere, about a third cancelled at some moment."""
    draw = random.Random(seed)
    for _ in range(count):
        num_prompt = draw.randint(2, MAX_PROMPT)
        max_tokens = draw.randint(4, MAX_OUTPUT)
        yield SoakRequest(
            prompt=tuple(draw.choices(vocabulary, k=num_prompt)),
            max_tokens=max_tokens,
            cut=draw.randint(1, num_prompt + max_tokens - 2),
            cancel_at=draw.uniform(0, 1.2) if draw.random() < SHARE_CANCELLED else None,
        )
