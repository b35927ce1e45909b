"""Which requests are made and where each is cut. Pure: the same seed gives the same grid."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dynaserve.certify.groups import GROUPS, Body
from dynaserve.certify.outcome import Outcome

Mode = Literal["sequential", "concurrent"]
ENDS_EARLY = "ends_before_the_cut"
ENDING_GROUPS = ("stop_token_ids", "stop_string")


@dataclass(frozen=True)
class Shape:
    """A prompt of ``num_prompt`` tokens and a bound of ``max_tokens`` on the output."""

    num_prompt: int
    max_tokens: int


@dataclass(frozen=True)
class Subject:
    """One request, apart from how it is cut."""

    name: str
    group: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Body

    @property
    def num_prompt(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True)
class Case:
    """One cut of one request. ``hands_over``: False when the output ends before the cut."""

    number: int
    subject: Subject
    cut: int
    transport: str
    caching: bool
    mode: Mode
    hands_over: bool = True

    @property
    def group(self) -> str:
        return self.subject.group if self.hands_over else ENDS_EARLY

    @property
    def in_company(self) -> bool:
        """Whether it runs beside others."""
        return self.mode == "concurrent"

    @property
    def place(self) -> str:
        """Where the cut lies, in a word."""
        distance = self.cut - self.subject.num_prompt
        if distance < -1:
            return "prompt"
        return {-1: "P-1", 0: "P", 1: "P+1"}.get(distance, "output")


def shapes(block_size: int, quick: bool) -> list[Shape]:
    """Around block edges, within one chunk and over several."""
    if quick:
        return [Shape(block_size + 5, 16), Shape(3 * block_size, 24)]
    return [
        Shape(3, 24),
        Shape(block_size - 1, 40),
        Shape(block_size, 24),
        Shape(block_size + 1, 32),
        Shape(2 * block_size + block_size // 2, 24),
        Shape(4 * block_size, 40),
        Shape(6 * block_size + 7, 24),
        Shape(9 * block_size + 11, 32),
    ]


def make_prompts(
    wanted: Sequence[Shape], vocabulary: Sequence[int], seed: int
) -> list[tuple[int, ...]]:
    """Random prompts from tokens that real text is made of."""
    draw = random.Random(seed)
    return [tuple(draw.choice(vocabulary) for _ in range(shape.num_prompt)) for shape in wanted]


def groups_of(index: int, quick: bool) -> list[str]:
    """The groups that use the prompt of this index: greedy uses all, the others take turns."""
    names = list(GROUPS)
    if quick:
        return names[index::2]
    return [name for k, name in enumerate(names) if name == "greedy" or (k + index) % 4 == 0]


def make_subject(group: str, probing: Subject, probe: Outcome, seed: int) -> Subject | None:
    """A group's request on a probed prompt; None when the probe does not lend itself."""
    sampling = GROUPS[group](probe, seed)
    if sampling is None:
        return None
    return replace(
        probing,
        name=f"{probing.name}.{group}",
        group=group,
        sampling={"ignore_eos": True, **sampling},
    )


def cuts(num_prompt: int, num_output: int, block_size: int) -> list[int]:
    """Where to cut a request that makes ``num_output`` tokens; the last leaves beta one token."""
    last = num_prompt + num_output - 2
    last_edge = num_prompt // block_size * block_size
    wanted = {
        1,
        block_size // 2,
        block_size - 1,
        block_size,
        num_prompt // 2,
        last_edge,
        last_edge + 1,
        num_prompt - 1,
        num_prompt,
        num_prompt + 1,
        num_prompt + num_output // 2,
        (num_prompt + num_output) // block_size * block_size,
        last,
    }
    return sorted(cut for cut in wanted if 1 <= cut <= last)


def cases_of(
    subject: Subject,
    reference: Outcome,
    block_size: int,
    first: int,
    quick: bool,
    transports: Sequence[str] = ("shm", "tcp"),
) -> Iterator[Case]:
    """Every cut of one request; transport, caching and load go round with the case's number."""
    num_output = len(reference.token_ids)
    where = cuts(subject.num_prompt, num_output, block_size)
    if quick:
        where = few(where, subject.num_prompt, first)
    number = first
    for cut in where:
        yield make_case(number, subject, cut, transports=transports)
        number += 1
    too_late = subject.num_prompt + num_output
    ends_early = num_output < subject.max_tokens and too_late <= last_cut(subject)
    if subject.group in ENDING_GROUPS and ends_early:
        yield make_case(number, subject, too_late, False, transports)


def few(where: Sequence[int], num_prompt: int, turn: int) -> list[int]:
    """The last cut and another: in the prompt, or around its end, as it is the subject's turn."""
    around = [cut for cut in where if abs(cut - num_prompt) <= 1]
    inside = [cut for cut in where if cut < num_prompt - 1]
    others = (around if turn // 2 % 2 else inside) or list(where)
    return sorted({others[turn // 4 % len(others)], where[-1]})


def last_cut(subject: Subject) -> int:
    """The bound that the pool puts on a cut."""
    return subject.num_prompt + subject.max_tokens - 2


def make_case(
    number: int,
    subject: Subject,
    cut: int,
    hands_over: bool = True,
    transports: Sequence[str] = ("shm", "tcp"),
) -> Case:
    turn = number % 8
    return Case(
        number=number,
        subject=subject,
        cut=cut,
        transport=transports[number % len(transports)],
        caching=bool(turn & 2),
        mode="concurrent" if turn & 4 else "sequential",
        hands_over=hands_over,
    )
