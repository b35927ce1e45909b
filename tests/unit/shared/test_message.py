"""Messages made without a look at their values."""

from hypothesis import given
from hypothesis import strategies as st

from shared.bus import encode
from shared.schemas.message import unchecked
from shared.schemas.place import Candidate, Plan, Prediction

predictions: st.SearchStrategy[dict[str, float]] = st.builds(
    dict, ttft_s=st.floats(0, 9), tbt_s=st.floats(0, 9), cost=st.floats(0, 9)
)


@given(predictions, st.one_of(st.none(), st.integers(1, 9)))
def test_an_unchecked_message_is_the_checked_one(
    prediction: dict[str, float], cut: int | None
) -> None:
    told = unchecked(Prediction, **prediction)
    candidate = unchecked(Candidate, alpha_id="a", cut=cut, prediction=told)
    fields = {"request_id": "r", "epoch": 1, "scheduler_id": "s", "policy": "p", "alpha_id": "a"}
    rest = {"reason": "r", "chosen": told, "candidates": [candidate]}
    made = unchecked(Plan, **fields, **rest)
    checked = Plan.model_validate(fields | rest)
    assert made == checked
    assert encode(made) == encode(checked)
    assert Plan.model_validate_json(encode(made)) == checked
