"""Counts over the cases of a certification. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field

from dynaserve.certify.grid import Case


@dataclass(frozen=True)
class Result:
    """What became of a case. ``void``: why it does not count; ``difference``: what is not equal."""

    case: Case
    difference: str | None = None
    void: str | None = None
    handoff: str | None = None
    max_logprob_difference: float = 0.0


class Count(BaseModel):
    """Cases of one kind that really were cut, and how many of them differ."""

    cases: int = 0
    mismatches: int = 0
    void: int = Field(default=0, description="runs that do not count: not cut as they should be")
    max_logprob_difference: float = 0.0


class NoiseFloor(BaseModel):
    """Uncut requests run once more uncut: what differs is not for cutting."""

    reruns: int = 0
    mismatches: int = 0
    max_logprob_difference: float = 0.0


class Problem(BaseModel):
    """A case that differs or does not count, so that it can be run again."""

    case: int
    subject: str
    group: str
    num_prompt: int
    max_tokens: int
    cut: int
    transport: str
    caching: bool
    mode: str
    difference: str | None
    void: str | None


class Certificate(BaseModel):
    """All that a certification found. ``cases`` counts only what really was cut."""

    cases: int
    mismatches: int
    void: int
    groups: dict[str, Count]
    modes: dict[str, Count]
    transports: dict[str, Count]
    caching: dict[str, Count]
    places: dict[str, Count]
    handoffs: dict[str, int] = Field(description="how the handoffs of all cases ended")
    noise_floor: NoiseFloor
    max_logprob_difference: float
    logprob_tolerance: float
    duration_s: float
    versions: dict[str, str]
    problems: list[Problem]

    @property
    def holds(self) -> bool:
        """Nothing differed, and everything that was to be cut was cut."""
        return self.cases > 0 and self.mismatches == 0 and self.void == 0


def certificate(
    results: Sequence[Result],
    noise_floor: NoiseFloor,
    logprob_tolerance: float,
    duration_s: float,
    versions: dict[str, str],
) -> Certificate:
    total = count(results)
    return Certificate(
        cases=total.cases,
        mismatches=total.mismatches,
        void=total.void,
        groups=count_by(results, lambda case: case.group),
        modes=count_by(results, lambda case: case.mode),
        transports=count_by(results, lambda case: case.transport),
        caching=count_by(results, lambda case: "on" if case.caching else "off"),
        places=count_by(results, lambda case: case.place),
        handoffs=dict(Counter(r.handoff for r in results if r.handoff is not None)),
        noise_floor=noise_floor,
        max_logprob_difference=total.max_logprob_difference,
        logprob_tolerance=logprob_tolerance,
        duration_s=duration_s,
        versions=versions,
        problems=[_problem(result) for result in results if result.difference or result.void],
    )


def count(results: Iterable[Result]) -> Count:
    valid = [result for result in results if result.void is None]
    differing = [result for result in valid if result.difference is not None]
    return Count(
        cases=len(valid),
        mismatches=len(differing),
        void=sum(result.void is not None for result in results),
        max_logprob_difference=max((r.max_logprob_difference for r in valid), default=0.0),
    )


def count_by(results: Sequence[Result], kind: Callable[[Case], str]) -> dict[str, Count]:
    """Counts by a property of the case, in the order in which its values first come up."""
    kinds = dict.fromkeys(kind(result.case) for result in results)
    return {each: count([r for r in results if kind(r.case) == each]) for each in kinds}


def _problem(result: Result) -> Problem:
    case = result.case
    return Problem(
        case=case.number,
        subject=case.subject.name,
        group=case.group,
        num_prompt=case.subject.num_prompt,
        max_tokens=case.subject.max_tokens,
        cut=case.cut,
        transport=case.transport,
        caching=case.caching,
        mode=case.mode,
        difference=result.difference,
        void=result.void,
    )
