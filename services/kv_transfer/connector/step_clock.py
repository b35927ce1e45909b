"""How long the device took for each step, from two events around its forward pass.

Where steps overlap (asynchronous scheduling) the host hears of a step's end only once it has
launched the next one, which takes tens of milliseconds for a step too large for a CUDA graph. By
the host's clock a short step in front of a long one then seems several times longer than it is, and
the long one shorter; what learns from that mistrusts every step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

MAX_STEPS = 64
"""Steps may be under way or not asked for; more means that nobody asks."""


class Mark(Protocol):
    """A point on the device's stream; ``torch.cuda.Event`` with timing."""

    def record(self) -> None: ...

    def query(self) -> bool: ...

    def elapsed_time(self, end: Mark) -> float:
        """Milliseconds from here to ``end``."""


class _Step(NamedTuple):
    begun: Mark
    done: Mark


class StepClock:
    """``begin`` and ``end`` as a step is launched, ``take_s`` in that order once results come."""

    def __init__(self, make_mark: Callable[[], Mark]) -> None:
        self._make_mark = make_mark
        self._begun: Mark | None = None
        self._steps: deque[_Step] = deque(maxlen=MAX_STEPS)
        self._last_done: Mark | None = None

    def begin(self) -> None:
        self._begun = self._make_mark()
        self._begun.record()

    def end(self) -> None:
        """Does nothing for what was not begun (a step without a forward pass)."""
        if self._begun is not None:
            done = self._make_mark()
            done.record()
            self._steps.append(_Step(self._begun, done))
            self._begun = None

    def take_s(self, follows: bool) -> float | None:
        """Seconds of the oldest step not taken; None where the device has not come to its end.

        ``follows``: it was launched while the step before it ran, so that its time begins where
        that one ended; else it begins with its own launch.
        """
        if not self._steps:
            return None
        step = self._steps.popleft()
        before, self._last_done = self._last_done, step.done
        if not step.done.query():
            return None
        since = before if follows and before is not None else step.begun
        return 1e-3 * since.elapsed_time(step.done)
