"""Answers already given, so that asking again changes nothing. Pure and bounded."""

from collections import OrderedDict
from typing import Literal

from shared.schemas.place import PlaceRefused, Plan

Answer = Plan | PlaceRefused


class AnswerMemory:
    """Per request the answer of its highest epoch; the oldest requests are forgotten first."""

    def __init__(self, max_remembered: int) -> None:
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._max_remembered = max_remembered

    def recall(self, request_id: str, epoch: int) -> Answer | Literal["new", "stale"]:
        """The answer given before; 'new' if none was; 'stale' when a later epoch was answered."""
        answer = self._answers.get(request_id)
        if answer is None or answer.epoch < epoch:
            return "new"
        return answer if answer.epoch == epoch else "stale"

    def remember(self, answer: Answer) -> None:
        self._answers[answer.request_id] = answer
        self._answers.move_to_end(answer.request_id)
        while len(self._answers) > self._max_remembered:
            self._answers.popitem(last=False)

    def forget(self, request_id: str) -> None:
        """Its answer never took effect."""
        self._answers.pop(request_id, None)
