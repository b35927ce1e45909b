"""What a trace tells of a placement."""

from shared import tracing
from shared.schemas.place import Place, Plan


def record_decision(place: Place, plan: Plan, now_s: float, took_s: float) -> None:
    """The span ``decide``; ``now_s``: unix time of its end."""
    if tracing.is_on():
        headers = place.request.trace_headers
        tracing.record_span(headers, "decide", now_s - took_s, now_s, _as_attributes(plan))


def _as_attributes(plan: Plan) -> dict[str, str | int | float | bool]:
    told: dict[str, str | int | float | bool | None] = {
        "dynaserve.policy": plan.policy,
        "dynaserve.reason": plan.reason,
        "dynaserve.alpha": plan.alpha_id,
        "dynaserve.beta": plan.beta_id,
        "dynaserve.cut": plan.cut,
        "dynaserve.control_group": plan.control_group,
        "dynaserve.num_candidates": len(plan.candidates),
    }
    if plan.chosen is not None:
        told["dynaserve.predicted_ttft_s"] = plan.chosen.ttft_s
        told["dynaserve.predicted_tbt_s"] = plan.chosen.tbt_s
    return {name: value for name, value in told.items() if value is not None}
