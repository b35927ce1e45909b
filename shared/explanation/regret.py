"""Regret: what the best candidate in hindsight would have given. Pure.

What another candidate would really have done nobody knows; this is what can be said of it. The plan
tells what was expected of every candidate. Of the chosen one the truth came out, and with it an
error: real less predicted. That error is charged to every candidate that would have used the same
instance for the same thing: making the first token (TTFT) or decoding (TBT). The others are taken
at their word. So regret blames a decision only for what another instance was expected to do better,
and it is too high when all instances were slower than expected.

The best candidate is the one whose worse objective, as a share of its bound, is the smallest.
"""

from shared.explanation.model import Regret
from shared.schemas.events import RequestRecord
from shared.schemas.place import Candidate, Plan
from shared.schemas.request import Slo

HOW = (
    "each candidate's prediction, plus the error seen on the chosen one where both use the same "
    "instance; other instances are taken at their word"
)


def regret_of(record: RequestRecord) -> Regret | None:
    """None when there was no choice, no prediction, or no token to compare with."""
    plan, real_ttft_s = record.plan, record.ttft_s
    if plan is None or plan.chosen is None or real_ttft_s is None or record.recoveries:
        return None
    real = (real_ttft_s, record.tbt_p99_s or 0.0)
    chosen = Candidate(
        alpha_id=plan.alpha_id, beta_id=plan.beta_id, cut=plan.cut, prediction=plan.chosen
    )
    estimates = [(real, chosen)]
    estimates += [
        (_estimate(other, chosen, real, record.num_prompt_tokens), other)
        for other in plan.candidates
        if not _is_same(other, plan)
    ]
    best, candidate = min(estimates, key=lambda each: _pressure(each[0], record.slo))
    return Regret(
        best=candidate,
        best_is_chosen=candidate is chosen,
        ttft_s=real[0] - best[0],
        tbt_s=None if record.tbt_p99_s is None else real[1] - best[1],
        estimated_ttft_s=best[0],
        estimated_tbt_s=best[1],
        would_have_met=_pressure(best, record.slo) <= 1.0,
        how=HOW,
    )


def _estimate(
    other: Candidate, chosen: Candidate, real: tuple[float, float], num_prompt_tokens: int
) -> tuple[float, float]:
    expected, seen = other.prediction, chosen.prediction
    ttft_s, tbt_s = expected.ttft_s, expected.tbt_s
    if _first_token_makers(other, num_prompt_tokens) & _first_token_makers(
        chosen, num_prompt_tokens
    ):
        ttft_s += real[0] - seen.ttft_s
    if _decoder(other) == _decoder(chosen):
        tbt_s += real[1] - seen.tbt_s
    return max(ttft_s, 0.0), max(tbt_s, 0.0)


def _first_token_makers(candidate: Candidate, num_prompt_tokens: int) -> set[str]:
    """Alpha alone when it emits; both when the cut lies inside the prompt."""
    beta_id, cut = candidate.beta_id, candidate.cut
    if beta_id is None or cut is None or cut >= num_prompt_tokens:
        return {candidate.alpha_id}
    return {candidate.alpha_id, beta_id}


def _decoder(candidate: Candidate) -> str:
    return candidate.beta_id or candidate.alpha_id


def _is_same(candidate: Candidate, plan: Plan) -> bool:
    ours = (plan.alpha_id, plan.beta_id, plan.cut)
    return (candidate.alpha_id, candidate.beta_id, candidate.cut) == ours


def _pressure(outcome: tuple[float, float], slo: Slo) -> float:
    return max(outcome[0] / slo.ttft_s, outcome[1] / slo.tbt_s)
