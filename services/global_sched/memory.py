"""Answers already given, so that asking again changes nothing. Pure and bounded.

They are kept as the bytes that were sent: as objects, thousands of plans with their candidates
would make each of Python's garbage collections a pause of a fifth of a second.
"""

from collections import OrderedDict
from typing import Literal, NamedTuple

from shared.bus import encode
from shared.schemas.place import PlaceRefused, Plan


class _Answer(NamedTuple):
    epoch: int
    sent: bytes


class AnswerMemory:
    """Per request the answer of its highest epoch; the oldest requests are forgotten first."""

    def __init__(self, max_remembered: int) -> None:
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._max_remembered = max_remembered

    def recall(self, request_id: str, epoch: int) -> bytes | Literal["new", "stale"]:
        """The answer given before; 'new' if none was; 'stale' when a later epoch was answered."""
        answer = self._answers.get(request_id)
        if answer is None or answer.epoch < epoch:
            return "new"
        return answer.sent if answer.epoch == epoch else "stale"

    def remember(self, answer: Plan | PlaceRefused) -> bytes:
        """Returns the answer as it is to be sent."""
        sent = encode(answer)
        self._answers[answer.request_id] = _Answer(answer.epoch, sent)
        self._answers.move_to_end(answer.request_id)
        while len(self._answers) > self._max_remembered:
            self._answers.popitem(last=False)
        return sent

    def forget(self, request_id: str) -> None:
        """Its answer never took effect."""
        self._answers.pop(request_id, None)
