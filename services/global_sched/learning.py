"""What the scheduler learns from the records of requests that are over, whoever placed them. Pure.

Records are published to everybody, so every replica learns the same.
"""

from __future__ import annotations

from typing import Literal

from services.global_sched.admission import Admission
from services.global_sched.length_predictor import LengthPredictor
from services.global_sched.policy.guard import WORST_SCORE, Guard, score
from shared.cuts import reason_code
from shared.schemas.events import RequestRecord
from shared.telemetry import BoundedNames

Group = Literal["cut", "control", "other"]
FINISHED = frozenset({"stop", "length", "repetition"})


class Learning:
    """Feeds length prediction, guard and admission. Classes come from clients: only so many are
    told apart, and the rest share one name."""

    def __init__(self, admission: Admission) -> None:
        self.lengths = LengthPredictor()
        self.guard = Guard()
        self.admission = admission
        self.class_name = BoundedNames()

    def observe(self, record: RequestRecord, model: str, policy: str) -> None:
        """``model``: what the record's instances serve; ``policy``: whose predictions count."""
        plan = record.plan
        if plan is None:
            return
        name = self.class_name(plan.traffic_class)
        if record.outcome in FINISHED:
            self.lengths.observe(name, record.num_output_tokens, model)
        ttft = ttft_outcome(record, policy)
        if ttft is not None:
            self.admission.error.observe(*ttft)
        outcome = guard_outcome(record)
        if outcome is not None:
            group, value = outcome
            self.guard.observe(name, value, cut=group == "cut", control=group == "control")


def ttft_outcome(record: RequestRecord, policy: str) -> tuple[float, float] | None:
    """(predicted, real) time to first token, where the prediction was for what happened."""
    plan = record.plan
    if plan is None or plan.chosen is None or plan.policy != policy or record.ttft_s is None:
        return None
    if record.epochs > 1 or reason_code(plan.reason) == "forced":
        return None
    return plan.chosen.ttft_s, record.ttft_s


def cached_outcome(record: RequestRecord) -> tuple[int, int] | None:
    """(predicted, real) prompt tokens found in alpha's cache. Behind a cut inside the prompt the
    record says what beta found."""
    plan = record.plan
    if plan is None or record.ttft_s is None or record.epochs > 1:
        return None
    if plan.cut is not None and plan.cut < record.num_prompt_tokens:
        return None
    return plan.predicted_cached_tokens, record.num_cached_tokens


def guard_outcome(record: RequestRecord) -> tuple[Group, float] | None:
    """The request's group and how it fared. A cut whose handoff was lost fared worst; what failed
    for another reason says nothing of cuts."""
    plan = record.plan
    if any(each.code == "handoff_lost" for each in record.recoveries):
        return "cut", WORST_SCORE
    if plan is None or record.recoveries or record.ttft_s is None:
        return None
    code = reason_code(plan.reason)
    if record.outcome not in FINISHED or code == "forced":
        return None
    slo = record.slo
    value = score(record.ttft_s, slo.ttft_s, record.tbt_p99_s or 0.0, slo.tbt_s)
    if plan.cut is not None:
        return "cut", value
    return "control" if code == "control_group" else "other", value
