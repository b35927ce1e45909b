"""The guard: turns cuts off for a traffic class in which uncut requests fare better.

Pure state machine. Finished requests go in (cut, or control group: would have been cut but was
not), the classes to leave uncut come out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

WORST_SCORE = 3.0
"""Of an outcome that missed both objectives by far."""


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """Counts of requests, shares of one."""

    memory: int = 200
    """Outcomes each running mean spans."""
    min_samples: int = 30
    margin: float = 0.05
    """Control must be better by this share of its score before cuts are turned off."""
    probe_every: int = 2000
    """After so many uncut outcomes of a class that is off, cuts are tried again."""


@dataclass(slots=True)
class _Group:
    samples: int = 0
    score: float = 0.0

    def add(self, score: float, memory: int) -> None:
        self.samples += 1
        self.score += (score - self.score) / min(self.samples, memory)


@dataclass(slots=True)
class _Class:
    cut: _Group = field(default_factory=_Group)
    control: _Group = field(default_factory=_Group)
    off_for: int = 0
    off: bool = False


class GuardState(NamedTuple):
    """What the guard holds of one traffic class; scores are None without samples."""

    traffic_class: str
    is_off: bool
    cut_samples: int
    cut_score: float | None
    control_samples: int
    control_score: float | None


def score(ttft_s: float, slo_ttft_s: float, tbt_p99_s: float, slo_tbt_s: float) -> float:
    """Cost of an outcome: 1 for a missed SLO, plus how much of each SLO was used (at most 2)."""
    used_ttft, used_tbt = ttft_s / slo_ttft_s, tbt_p99_s / slo_tbt_s
    missed = used_ttft > 1.0 or used_tbt > 1.0
    return float(missed) + 0.5 * min(used_ttft, 2.0) + 0.5 * min(used_tbt, 2.0)


class Guard:
    """Compares running mean scores of cut and control requests, per traffic class.

    A class is off only after ``min_samples`` of both groups; then both are forgotten, and after
    ``probe_every`` further requests cuts get another chance.
    """

    def __init__(self, settings: GuardSettings | None = None) -> None:
        self.settings = settings or GuardSettings()
        self._classes: dict[str, _Class] = {}
        self._off: frozenset[str] = frozenset()

    def observe(
        self, traffic_class: str, outcome_score: float, *, cut: bool, control: bool
    ) -> None:
        known = self._classes.setdefault(traffic_class, _Class())
        if known.off:
            self._wait(known)
        elif cut:
            known.cut.add(outcome_score, self.settings.memory)
            self._judge(known)
        elif control:
            known.control.add(outcome_score, self.settings.memory)
            self._judge(known)
        if known.off != (traffic_class in self._off):
            self._off = frozenset(name for name, each in self._classes.items() if each.off)

    def _judge(self, known: _Class) -> None:
        enough = min(known.cut.samples, known.control.samples) >= self.settings.min_samples
        if enough and known.cut.score > known.control.score * (1.0 + self.settings.margin):
            known.off, known.off_for = True, 0
            known.cut, known.control = _Group(), _Group()

    def _wait(self, known: _Class) -> None:
        known.off_for += 1
        if known.off_for >= self.settings.probe_every:
            known.off = False

    def states(self) -> Iterator[GuardState]:
        """Of every class seen."""
        for name, known in list(self._classes.items()):
            cut, control = known.cut, known.control
            yield GuardState(
                name,
                known.off,
                cut.samples,
                cut.score if cut.samples else None,
                control.samples,
                control.score if control.samples else None,
            )

    def state(self, traffic_class: str) -> GuardState | None:
        return next((s for s in self.states() if s.traffic_class == traffic_class), None)

    @property
    def unsplit_classes(self) -> frozenset[str]:
        return self._off
