"""Prompts of an exact number of tokens: seeded random ids, written as JSON without much work."""

import random

import numpy as np

from dynaserve.sim.traces import SimRequest

STOCK_TOKENS = 1 << 16
UNIQUE_TOKENS = 8


class Prompts:
    """Gives each request its prompt, the same for the same seed.

    Rendering each id anew would cost the client milliseconds per long prompt, so a stock of ids is
    rendered once and each prompt is a window of it. It begins with a few ids of its own: no two
    prompts share a block, and no prefix cache hit is made by accident.
    """

    def __init__(self, vocab_size: int, seed: int) -> None:
        # The ends of a vocabulary hold special tokens.
        self._low = vocab_size // 10
        self._high = max(self._low + 1, vocab_size - vocab_size // 10)
        self._seed = seed
        ids = np.random.default_rng(seed).integers(self._low, self._high, STOCK_TOKENS)
        self._stock = [str(number) for number in ids.tolist()]

    def ids(self, request: SimRequest) -> str:
        """Exactly ``request.prompt_tokens`` ids, separated by commas."""
        shared = min(request.prefix_tokens, request.prompt_tokens) if request.prefix_id else 0
        parts = self._take(f"prefix:{request.prefix_id}", shared)
        parts += self._take(f"request:{request.request_id}", request.prompt_tokens - shared)
        return ",".join(parts)

    def _take(self, name: str, tokens: int) -> list[str]:
        if tokens <= 0:
            return []
        draw = random.Random(f"{self._seed}:{name}")
        head = [str(draw.randrange(self._low, self._high)) for _ in range(UNIQUE_TOKENS)]
        at = draw.randrange(STOCK_TOKENS)
        rounds = 1 + (at + tokens) // STOCK_TOKENS
        window = (self._stock * rounds if rounds > 1 else self._stock)[at : at + tokens]
        return (head + window)[:tokens]
