"""Why a request was cut where it was."""

import pytest

from shared.explanation.choice import choice_of
from shared.schemas.place import Candidate
from tests.unit.shared.explanation.records import P, cut_plan, cut_record, plan, prediction, record

UNCUT = prediction(0.2, 0.08, 1.5)
CUT = Candidate(alpha_id="a", beta_id="b", cut=9, prediction=prediction(0.25, 0.03, 0.9))


@pytest.mark.parametrize(
    ("cut", "where"),
    [(P - 1, "inside the prompt"), (P, "at the prompt's end"), (P + 4, "behind the prompt")],
)
def test_a_cut_is_told_with_what_was_expected_uncut(cut: int, where: str) -> None:
    weighed = cut_plan(cut).model_copy(update={"unsplit": UNCUT})
    assert choice_of(cut_record(cut=cut, plan=weighed)) == (
        f"Cut {where}: TTFT 300 ms, gap 40 ms, cost 1; "
        "uncut at best: TTFT 200 ms, gap 80 ms, cost 1.5."
    )


def test_an_uncut_request_is_told_with_the_best_cut() -> None:
    worse = CUT.model_copy(update={"cut": 5, "prediction": prediction(cost=7.0)})
    chosen = Candidate(alpha_id="a", prediction=prediction())
    told = choice_of(record(plan=plan(candidates=[worse, chosen, CUT])))
    assert told == (
        "Not cut: TTFT 300 ms, gap 40 ms, cost 1; "
        "the best cut, a → b, cut at 9: TTFT 250 ms, gap 30 ms, cost 0.9."
    )


def test_a_forced_cut_is_told_with_the_policys_own_choice() -> None:
    forced = cut_plan(P).model_copy(update={"unforced": CUT, "chosen": None})
    told = choice_of(cut_record(cut=P, plan=forced))
    assert told is not None and "own choice was a → b, cut at 9: TTFT 250 ms" in told


def test_without_a_plan_a_prediction_or_another_way_nothing_is_told() -> None:
    assert choice_of(record(plan=None)) is None
    assert choice_of(record()) is None
    assert choice_of(record(plan=plan(chosen=None))) is None
