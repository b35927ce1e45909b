"""What a completion gave, and in what it differs from another. Pure."""

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One finished completion. ``top_logprobs`` holds a dict from token text to value each."""

    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]
    text: str
    finish_reason: str | None
    stop_reason: int | str | None = None
    logprobs: tuple[float | None, ...] = ()
    top_logprobs: tuple[dict[str, float], ...] = ()

    @classmethod
    def from_choice(cls, choice: dict[str, Any]) -> "Outcome":
        """A choice of /v1/completions, asked for with ``return_token_ids``."""
        logprobs = choice.get("logprobs") or {}
        return cls(
            token_ids=tuple(choice["token_ids"]),
            token_texts=tuple(logprobs.get("tokens") or ()),
            text=choice["text"],
            finish_reason=choice["finish_reason"],
            stop_reason=choice.get("stop_reason"),
            logprobs=tuple(logprobs.get("token_logprobs") or ()),
            top_logprobs=tuple(top or {} for top in logprobs.get("top_logprobs") or ()),
        )


@dataclass(frozen=True)
class Comparison:
    """``difference`` is None when the two are the same; it names the first thing that is not."""

    difference: str | None
    max_logprob_difference: float = 0.0


def compare(expected: Outcome, got: Outcome, logprob_tolerance: float) -> Comparison:
    """Tokens, text and finish must be equal, log-probabilities equal within the tolerance."""
    for index, (one, other) in enumerate(zip_longest(expected.token_ids, got.token_ids)):
        if one != other:
            return Comparison(f"output token {index} is {other}, not {one}")
    for name in ("text", "finish_reason", "stop_reason"):
        one, other = getattr(expected, name), getattr(got, name)
        if one != other:
            return Comparison(f"{name} is {other!r}, not {one!r}")
    return _compare_logprobs(expected, got, logprob_tolerance)


def _compare_logprobs(expected: Outcome, got: Outcome, tolerance: float) -> Comparison:
    if len(expected.logprobs) != len(got.logprobs):
        return Comparison(f"{len(got.logprobs)} logprobs, not {len(expected.logprobs)}")
    worst, where = 0.0, 0
    for index, (one, other) in enumerate(zip(expected.logprobs, got.logprobs, strict=True)):
        difference = _distance(one, other)
        if difference > worst:
            worst, where = difference, index
    tops = zip(expected.top_logprobs, got.top_logprobs, strict=True)
    for index, (top, other_top) in enumerate(tops):
        difference = _top_distance(top, other_top)
        if difference > worst:
            worst, where = difference, index
    if worst > tolerance:
        return Comparison(f"logprobs of output token {where} differ by {worst:.2g}", worst)
    return Comparison(None, worst)


def _top_distance(one: dict[str, float], other: dict[str, float]) -> float:
    """Largest difference over the tokens both name; none in common counts as infinite.

    Which token is the last of the most likely may turn on rounding, so names are not compared.
    """
    common = one.keys() & other.keys()
    if not common:
        return math.inf if one or other else 0.0
    return max(_distance(one[name], other[name]) for name in common)


def _distance(one: float | None, other: float | None) -> float:
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    return 0.0 if one == other else abs(one - other)
