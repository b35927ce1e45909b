"""Which instance made which tokens of a request, and how far apart they came. Pure."""

from collections.abc import Sequence

from shared.schemas.events import Emitter
from shared.schemas.place import Plan

Spell = tuple[int, Plan]
"""A plan and the first position it was to bring; recoveries begin new ones."""

Run = tuple[str, int, int]
"""An instance and the positions [from, to) it emitted."""


def emitters(
    spells: Sequence[Spell], num_prompt_tokens: int, gaps_s: Sequence[float], tbt_s: float
) -> list[Emitter]:
    """One entry for each unbroken run of tokens from one instance.

    ``gaps_s[i]`` is the gap before output token i + 1, as the gateway saw it.
    """
    end = num_prompt_tokens + len(gaps_s) + 1
    return [
        _emitter(run, num_prompt_tokens, gaps_s, tbt_s)
        for run in _runs(spells, num_prompt_tokens, end)
    ]


def _runs(spells: Sequence[Spell], num_prompt_tokens: int, end: int) -> list[Run]:
    runs: list[Run] = []
    for index, (start, plan) in enumerate(spells):
        stop = spells[index + 1][0] if index + 1 < len(spells) else end
        for instance_id, first, last in _runs_of_plan(plan, num_prompt_tokens, start, stop):
            if first < last:
                runs.append((instance_id, first, last))
    return runs


def _runs_of_plan(plan: Plan, num_prompt_tokens: int, start: int, stop: int) -> list[Run]:
    if plan.beta_id is None or plan.cut is None:
        return [(plan.alpha_id, start, stop)]
    beta_from = min(max(num_prompt_tokens, plan.cut + 1, start), stop)
    return [(plan.alpha_id, start, beta_from), (plan.beta_id, beta_from, stop)]


def _emitter(run: Run, num_prompt_tokens: int, gaps_s: Sequence[float], tbt_s: float) -> Emitter:
    instance_id, first, last = run
    begin = first - num_prompt_tokens
    inner = gaps_s[begin : last - num_prompt_tokens - 1]
    late = [gap_s for gap_s in inner if gap_s > tbt_s]
    longest_s = max(inner, default=0.0)
    return Emitter(
        instance_id=instance_id,
        from_position=first,
        num_tokens=last - first,
        handover_gap_s=gaps_s[begin - 1] if begin > 0 else None,
        longest_gap_s=longest_s,
        longest_gap_position=first + 1 + inner.index(longest_s) if inner else None,
        num_late_gaps=len(late),
        late_s=sum(late) - tbt_s * len(late),
    )
