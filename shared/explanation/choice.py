"""Why a request was cut where it was, or was not cut, in a sentence. Pure."""

from shared.cuts import region
from shared.explanation.wording import say_s
from shared.schemas.events import RequestRecord
from shared.schemas.place import Candidate, Plan, Prediction

WHERE = {
    "prompt": "inside the prompt",
    "boundary": "at the prompt's end",
    "output": "behind the prompt",
    "none": "",
}


def choice_of(record: RequestRecord) -> str | None:
    """What the plan expected of its choice, and of the other way; None when it tells nothing."""
    plan = record.plan
    if plan is None:
        return None
    if plan.unforced is not None:
        own = plan.unforced
        return (
            f"The request forced its cut. The policy's own choice was {named(own)}: "
            f"{_expected(own.prediction)}."
        )
    if plan.chosen is None:
        return None
    if plan.cut is not None:
        where = WHERE[region(plan.cut, record.num_prompt_tokens)]
        said = f"Cut {where}: {_expected(plan.chosen)}"
        return said + (f"; uncut at best: {_expected(plan.unsplit)}." if plan.unsplit else ".")
    cut = _best_cut(plan)
    if cut is None:
        return None
    other = f"{named(cut)}: {_expected(cut.prediction)}"
    return f"Not cut: {_expected(plan.chosen)}; the best cut, {other}."


def named(one: Candidate) -> str:
    """Its instances and where it is cut."""
    return one.alpha_id + (f" → {one.beta_id}, cut at {one.cut}" if one.beta_id else ", uncut")


def _best_cut(plan: Plan) -> Candidate | None:
    cuts = (candidate for candidate in plan.candidates if candidate.cut is not None)
    return min(cuts, key=lambda candidate: candidate.prediction.cost, default=None)


def _expected(prediction: Prediction) -> str:
    return (
        f"TTFT {say_s(prediction.ttft_s)}, gap {say_s(prediction.tbt_s)}, "
        f"cost {prediction.cost:.3g}"
    )
