"""What the client saw of one request, and the times that follow from it."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import Literal

from dynaserve.sim.traces import SimRequest

Outcome = Literal["ok", "refused", "failed", "unfinished"]
"""refused: 429. unfinished: the run ended first. Everything but ok is a miss."""


@dataclass(slots=True)
class Observation:
    """Times are seconds of one monotonic clock.

    Everything counts from ``due_s``, when the request was to be sent: a client that sends late, or
    waits for a free slot, does not make the server look better.
    """

    request: SimRequest
    due_s: float
    sent_s: float = math.nan
    done_s: float = math.nan
    outcome: Outcome = "unfinished"
    detail: str = ""
    chunk_s: array[float] = field(default_factory=lambda: array("d"))
    chunk_tokens: array[int] = field(default_factory=lambda: array("I"))
    exact: bool = True
    """False when the server did not say how many tokens a chunk holds."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    retry_after_s: float | None = None
    measured: bool = True

    def saw_tokens(self, at_s: float, tokens: int) -> None:
        """One read from the socket brought ``tokens`` tokens."""
        self.chunk_s.append(at_s)
        self.chunk_tokens.append(tokens)

    @property
    def tokens(self) -> int:
        return sum(self.chunk_tokens)

    @property
    def late_s(self) -> float:
        """Sent this much after it was due."""
        return self.sent_s - self.due_s

    @property
    def ttft_s(self) -> float:
        return self.chunk_s[0] - self.due_s if self.chunk_s else math.nan

    @property
    def e2el_s(self) -> float:
        """End-to-end latency: the last token, from when the request was due."""
        return self.chunk_s[-1] - self.due_s if self.chunk_s else math.nan

    @property
    def tpot_s(self) -> float:
        """Mean gap between tokens; NaN for a single token."""
        if self.tokens < 2:
            return math.nan
        return (self.chunk_s[-1] - self.chunk_s[0]) / (self.tokens - 1)

    def chunk_gaps_s(self) -> list[float]:
        """Between one chunk and the next: the ITL of ``vllm bench serve``."""
        return [b - a for a, b in zip(self.chunk_s, self.chunk_s[1:], strict=False)]

    def token_gaps_s(self) -> list[float]:
        """Between one token and the next (TBT); tokens of one chunk are no time apart."""
        gaps = self.chunk_gaps_s()
        together = self.tokens - len(self.chunk_tokens)
        return gaps + [0.0] * together

    @property
    def tbt_p99_s(self) -> float:
        """Nearest rank: at most one gap in a hundred is longer. 0 without gaps."""
        gaps = sorted(self.token_gaps_s())
        return gaps[len(gaps) - 1 - len(gaps) // 100] if gaps else 0.0
