"""Whether a case really was cut where it should be, by the pool's own records. Pure."""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dynaserve.certify.grid import Case
from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffRecord

HANDED_OVER = frozenset({"adopted"})
ENDED = frozenset({"ended", "cancelled"})


@dataclass(frozen=True)
class Evidence:
    """The records of one HTTP request's only choice."""

    request: RequestRecord
    handoff: HandoffRecord | None


def read_evidence(view: dict[str, Any]) -> Evidence | None:
    """From GET /dynaserve/requests/ID; None while a record is missing or unreadable."""
    try:
        requests = [RequestRecord.model_validate(each) for each in view["requests"]]
        handoffs = [HandoffRecord.model_validate(each) for each in view["handoffs"]]
    except ValidationError:
        return None
    if len(requests) != 1:
        return None
    plan = requests[0].plan
    if plan is None or plan.cut is None:
        return Evidence(requests[0], None)
    mine = [handoff for handoff in handoffs if handoff.handoff_id == plan.handoff_id]
    return Evidence(requests[0], mine[0]) if mine else None


def objection(case: Case, evidence: Evidence | None) -> str | None:
    """Why the run does not count as the case; None when it does."""
    if evidence is None:
        return "the pool has no record of it"
    plan, handoff = evidence.request.plan, evidence.handoff
    if plan is None or plan.cut != case.cut:
        return f"it was cut at {plan and plan.cut}, not {case.cut}"
    if evidence.request.epochs != 1:
        return f"it was placed {evidence.request.epochs} times"
    if handoff is None:
        return "there is no record of its handoff"
    return _handoff_objection(case, handoff)


def _handoff_objection(case: Case, handoff: HandoffRecord) -> str | None:
    if handoff.outcome not in expected_outcomes(case):
        return f"its handoff ended as {handoff.outcome} {handoff.detail}".rstrip()
    if handoff.transport != case.transport:
        return f"its KV went by {handoff.transport}, not {case.transport}"
    if handoff.outcome == "adopted" and not handoff.num_bytes:
        return "no KV moved"
    return None


def expected_outcomes(case: Case) -> frozenset[str]:
    """How the handoff of a case may end."""
    if case.hands_over:
        return HANDED_OVER | {"not_needed"} if case.caching else HANDED_OVER
    # A stop string is found at the gateway: alpha may have reached the cut before it hears of it.
    return ENDED | HANDED_OVER if "stop" in case.subject.sampling else ENDED


def uncut_objection(evidence: Evidence | None) -> str | None:
    """The same for a run that must not be cut."""
    if evidence is None:
        return "the pool has no record of it"
    cut = evidence.request.plan.cut if evidence.request.plan is not None else None
    return None if cut is None else f"it was cut at {cut}"
