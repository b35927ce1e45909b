"""What records of finished requests teach the guard, the length prediction and admission."""

import pytest

from services.global_sched.admission import Admission
from services.global_sched.learning import (
    Learning,
    cached_outcome,
    guard_outcome,
    ttft_outcome,
)
from services.global_sched.policy.guard import WORST_SCORE
from shared.schemas.events import Recovery, RequestRecord
from shared.schemas.place import Plan, Prediction
from shared.schemas.request import Slo

CHEAPEST = "cut is cheapest"


def plan(reason: str = CHEAPEST, cut: int | None = None, **changes: object) -> Plan:
    fields: dict[str, object] = {
        "request_id": "r",
        "epoch": 1,
        "scheduler_id": "s",
        "policy": "dynaserve",
        "alpha_id": "a",
        "beta_id": "b" if cut is not None else None,
        "cut": cut,
        "reason": reason,
        "chosen": Prediction(ttft_s=0.25, tbt_s=0.05, cost=1.0),
    }
    return Plan.model_validate(fields | changes)


def record(made: Plan | None, **changes: object) -> RequestRecord:
    fields: dict[str, object] = {
        "request_id": "r",
        "gateway_id": "g",
        "arrival_at_s": 0.0,
        "num_prompt_tokens": 50,
        "num_output_tokens": 7,
        "num_cached_tokens": 0,
        "slo": Slo(ttft_s=1.0, tbt_s=0.1),
        "outcome": "length",
        "ttft_s": 0.5,
        "tbt_p99_s": 0.05,
        "e2e_s": 1.0,
        "slo_met": True,
        "epochs": 1,
        "plan": made,
    }
    return RequestRecord.model_validate(fields | changes)


def lost(code: str) -> Recovery:
    return Recovery(epoch=1, at_s=0.0, code=code, message="", position=50)


@pytest.mark.parametrize(
    ("made", "group"),
    [
        (plan(cut=49), "cut"),
        (plan("control group", control_group=True), "control"),
        (plan("uncut is cheapest", control_group=True), "other"),
        (plan("guard: cuts lost"), "other"),
    ],
)
def test_a_request_counts_for_the_group_it_was_in(made: Plan, group: str) -> None:
    outcome = guard_outcome(record(made))
    assert outcome is not None and outcome[0] == group
    assert outcome[1] == pytest.approx(0.5 * 0.5 + 0.5 * 0.5)


@pytest.mark.parametrize(
    "silent",
    [
        record(None),
        record(plan("forced by the request", cut=9)),
        record(plan(cut=49), outcome="abort"),
        record(plan(cut=49), ttft_s=None),
        record(plan(), recoveries=[lost("instance_lost")]),
    ],
)
def test_what_says_nothing_of_cuts_is_left_out(silent: RequestRecord) -> None:
    assert guard_outcome(silent) is None


def test_a_cut_that_lost_its_handoff_fared_worst_though_its_last_plan_is_uncut() -> None:
    resumed = record(plan("uncut is cheapest"), recoveries=[lost("handoff_lost")], epochs=2)
    assert guard_outcome(resumed) == ("cut", WORST_SCORE)


def test_only_predictions_for_what_happened_are_held_against_first_tokens() -> None:
    assert ttft_outcome(record(plan()), "dynaserve") == (0.25, 0.5)
    assert ttft_outcome(record(plan()), "colocated") is None
    assert ttft_outcome(record(plan(), epochs=2), "dynaserve") is None
    assert ttft_outcome(record(plan(), ttft_s=None), "dynaserve") is None
    assert ttft_outcome(record(plan("forced by the request", cut=9)), "dynaserve") is None


def test_cuts_that_fare_worse_than_the_control_group_are_turned_off_in_their_class() -> None:
    learning = Learning(Admission())
    for _ in range(30):
        learning.observe(record(plan("control group")), "m", "dynaserve")
        learning.observe(record(plan(cut=49), ttft_s=3.0), "m", "dynaserve")
    assert learning.guard.unsplit_classes == {"default"}


def test_classes_that_clients_invent_do_not_take_memory_without_end() -> None:
    learning = Learning(Admission())
    for number in range(1000):
        learning.observe(record(plan(traffic_class=f"c{number}")), "m", "dynaserve")
    assert len(list(learning.guard.states())) <= 33
    assert len(learning.lengths._lengths) <= 33


def test_lengths_are_learned_by_model() -> None:
    learning = Learning(Admission())
    for _ in range(16):
        learning.observe(record(plan()), "m", "dynaserve")
    assert learning.lengths.predict("default", 1000, "m").p50 == 7.0
    assert learning.lengths.predict("default", 1000, "other").p50 != 7.0


def test_cached_tokens_are_compared_where_the_first_token_was_alphas() -> None:
    assert cached_outcome(record(plan(predicted_cached_tokens=64), num_cached_tokens=48)) == (
        64,
        48,
    )
    assert cached_outcome(record(plan(cut=50))) == (0, 0)
    assert cached_outcome(record(plan(cut=49))) is None
    assert cached_outcome(record(plan(), epochs=2)) is None
