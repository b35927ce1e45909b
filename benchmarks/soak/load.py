"""The requests of a soak. Pure: the same seed gives the same load."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SHARE_LEAVING = 0.5
"""Some have their whole answer before they leave: about a third is cancelled in the end."""
MAX_PROMPT = 300
MAX_OUTPUT = 40


@dataclass(frozen=True)
class SoakRequest:
    """A client that leaves does so when it has seen ``leave_after`` pieces of the answer; with 0,
    after the share ``leave_at`` of the usual duration, most likely before the first. None: stays.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    cut: int
    leave_after: int | None
    leave_at: float


def make_load(count: int, seed: int, vocabulary: Sequence[int]) -> Iterator[SoakRequest]:
    """``count`` requests, each cut somewhere; half of the clients mean to leave at some moment."""
    draw = random.Random(seed)
    for _ in range(count):
        num_prompt = draw.randint(2, MAX_PROMPT)
        max_tokens = draw.randint(4, MAX_OUTPUT)
        yield SoakRequest(
            prompt=tuple(draw.choices(vocabulary, k=num_prompt)),
            max_tokens=max_tokens,
            cut=draw.randint(1, num_prompt + max_tokens - 2),
            leave_after=_leave_after(draw, max_tokens),
            leave_at=draw.uniform(0, 0.5),
        )


def _leave_after(draw: random.Random, max_tokens: int) -> int | None:
    """Half of those that leave do so while nothing has come yet."""
    if draw.random() >= SHARE_LEAVING:
        return None
    return draw.choice([0, draw.randint(1, max_tokens - 1)])
