"""One segment inside the simulated engine: its tokens, how far it is computed, its blocks."""

from __future__ import annotations

import zlib
from typing import Literal

from services.gpu_instance.batcher import PromptView
from shared.schemas.message import unpack_tokens
from shared.schemas.segment import Segment

Phase = Literal["waiting", "running", "holding", "sending", "over"]


class BlockPool:
    """KV blocks by number. Invariant: 0 <= free <= total."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total

    def take(self, count: int) -> bool:
        """Take ``count`` blocks, or none and False."""
        if count > self.free:
            return False
        self.free -= count
        return True

    def give_back(self, count: int) -> None:
        self.free += count
        if self.free > self.total:
            raise AssertionError(f"{self.free} blocks free of {self.total}")


class SimulatedRequest:
    """A segment under way. ``tokens[i]`` is the token at position i, as far as it is known.

    A token is a function of the prompt, its position and the token before it: a run that was cut
    gives the same tokens as one that was not exactly when nothing was lost on the way.
    """

    __slots__ = (
        "added_s",
        "blocks",
        "computed",
        "deadline_timer",
        "end",
        "first_visible",
        "held_at_s",
        "is_kept",
        "key",
        "last_token_s",
        "limit",
        "loaded_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "phase",
        "queued_s",
        "reported",
        "seed",
        "segment",
        "slo_tbt_s",
        "stop_ids",
        "tokens",
    )

    def __init__(self, segment: Segment, now_s: float) -> None:
        request = segment.request
        prompt = unpack_tokens(request.prompt_token_ids)
        self.segment = segment
        self.key = (request.request_id, segment.epoch)
        self.num_prompt_tokens = len(prompt)
        self.tokens = prompt + unpack_tokens(request.output_token_ids)
        self.seed = zlib.crc32(request.prompt_token_ids)
        self.limit = len(prompt) + request.max_tokens
        """No token at this position or beyond."""
        cut = segment.handoff.cut if segment.handoff is not None else None
        self.end = cut if segment.role == "alpha" and cut is not None else self.limit
        """Positions from here on are not computed."""
        self.first_visible = len(self.tokens)
        self.computed = 0
        self.blocks = 0
        self.phase: Phase = "waiting"
        self.added_s = now_s
        self.queued_s: float | None = None
        self.last_token_s = now_s
        self.slo_tbt_s = request.slo.tbt_s
        self.num_preemptions = 0
        self.loaded_tokens = 0
        self.reported = False
        self.is_kept = False
        """Its prompt is in the prefix cache."""
        self.held_at_s: float | None = None
        self.deadline_timer: object | None = None
        self.stop_ids = _stop_ids(segment)

    @property
    def remaining(self) -> int:
        """Known positions that are not computed yet."""
        known = len(self.tokens)
        return (known if known < self.end else self.end) - self.computed

    @property
    def is_decode(self) -> bool:
        return self.remaining == 1 and self.computed >= self.num_prompt_tokens

    def prompt_view(self, remaining: int) -> PromptView:
        """The prompt with so many tokens to compute, for the batcher's order."""
        slo = self.segment.request.slo
        return PromptView(self.added_s, self.added_s + slo.ttft_s, remaining)

    def next_token(self, vocab_size: int) -> int:
        """The token behind everything known."""
        position = len(self.tokens)
        previous = self.tokens[-1] if self.tokens else 0
        mixed = (self.seed ^ (position * 2_654_435_761) ^ (previous * 40_503)) & 0xFFFFFFFF
        return (mixed ^ (mixed >> 15)) % vocab_size

    def knows_all_before(self, cut: int) -> bool:
        """Beta: could it compute from the start without alpha?"""
        return len(self.tokens) >= min(cut + 1, self.limit) or cut < self.num_prompt_tokens


def _stop_ids(segment: Segment) -> frozenset[int]:
    ids = (segment.request.sampling_params or {}).get("stop_token_ids")
    return frozenset(i for i in ids if isinstance(i, int)) if isinstance(ids, list) else frozenset()


def reference_tokens(segment: Segment, vocab_size: int) -> list[int]:
    """The output of the request, computed without any engine: what every run must give."""
    request = SimulatedRequest(segment, 0.0)
    made: list[int] = []
    while len(request.tokens) < request.limit:
        made.append(request.next_token(vocab_size))
        request.tokens.append(made[-1])
        if made[-1] in request.stop_ids:
            break
    return made
