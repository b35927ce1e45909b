"""When a part that ended is started again."""

from dataclasses import dataclass

FIRST_S = 1.0
LONGEST_S = 60.0
QUICK_S = 30.0
"""A part that lived no longer than this ended at once: the next one waits twice as long."""


@dataclass(slots=True)
class Restarts:
    """Of one part: soon, but ever later while it keeps ending at once.

    It is never given up: the rest of the pool serves meanwhile, and what was in the way (memory of
    another process, a port, a device) may go.
    """

    _next_s: float = FIRST_S

    def after_s(self, lived_s: float) -> float:
        """How long to wait now that it ended after ``lived_s``. Seconds."""
        if lived_s > QUICK_S:
            self._next_s = FIRST_S
        wait_s, self._next_s = self._next_s, min(2.0 * self._next_s, LONGEST_S)
        return wait_s
