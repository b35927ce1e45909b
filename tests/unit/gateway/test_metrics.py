"""What a gateway counts of a request that is over."""

from typing import Any

import pytest
from opentelemetry.metrics import CallbackOptions

from services.gateway import metrics
from services.gateway.metrics import RequestMeter
from shared.telemetry import Tally
from tests.unit.gateway.test_phases import record


def change(tally: Tally, before: dict[Any, float]) -> dict[Any, float]:
    now = snapshot(tally)
    return {key: now[key] - before.get(key, 0) for key in now if now[key] != before.get(key, 0)}


def snapshot(tally: Tally) -> dict[Any, float]:
    shown = tally.observe(CallbackOptions())
    return {tuple(str(v) for v in (o.attributes or {}).values()): o.value for o in shown}


@pytest.mark.parametrize(
    ("update", "good"),
    [
        ({"ttft_s": 0.5, "tbt_p99_s": 0.5}, {"ttft", "tbt", "both"}),
        ({"ttft_s": 1.5, "tbt_p99_s": 0.5, "slo_met": False}, {"tbt"}),
        ({"ttft_s": 0.5, "tbt_p99_s": 1.5, "slo_met": False}, {"ttft"}),
        ({"outcome": "error", "slo_met": False}, set()),
        ({"outcome": "refused", "ttft_s": None, "slo_met": False}, set()),
    ],
)
def test_each_objective_is_judged_apart(update: dict[str, Any], good: set[str]) -> None:
    meter = RequestMeter()
    judged, met = snapshot(metrics._judged), snapshot(metrics._good)
    meter.over(record().model_copy(update=update))
    assert set(change(metrics._judged, judged)) == {
        ("default", "ttft"),
        ("default", "tbt"),
        ("default", "both"),
    }
    assert set(change(metrics._good, met)) == {("default", each) for each in good}


def test_a_client_that_left_judges_nothing() -> None:
    meter = RequestMeter()
    judged = snapshot(metrics._judged)
    meter.over(record().model_copy(update={"outcome": "abort", "slo_met": False}))
    assert change(metrics._judged, judged) == {}


def test_only_tokens_of_requests_that_met_both_are_goodput() -> None:
    meter = RequestMeter()
    before = snapshot(metrics._goodput)
    meter.over(record())
    meter.over(record().model_copy(update={"slo_met": False}))
    assert change(metrics._goodput, before) == {("default",): 5}


@pytest.mark.parametrize(
    ("cut", "control", "group"),
    [(None, False, "uncut"), (50, False, "cut"), (None, True, "control")],
)
def test_groups_of_the_comparison(cut: int | None, control: bool, group: str) -> None:
    meter = RequestMeter()
    before = snapshot(metrics._groups)
    over = record(cut=cut)
    assert over.plan is not None
    plan = over.plan.model_copy(update={"control_group": control})
    meter.over(over.model_copy(update={"plan": plan}))
    assert change(metrics._groups, before) == {(group, "met"): 1}


def test_a_forced_cut_is_in_no_group_of_the_comparison() -> None:
    meter = RequestMeter()
    before = snapshot(metrics._groups)
    over = record(cut=50)
    assert over.plan is not None
    plan = over.plan.model_copy(update={"reason": "forced by the request; else: least loaded"})
    meter.over(over.model_copy(update={"plan": plan}))
    assert change(metrics._groups, before) == {}


def test_classes_beyond_the_bound_share_one_name() -> None:
    meter = RequestMeter()
    before = snapshot(metrics._judged)
    for number in range(40):
        over = record()
        slo = over.slo.model_copy(update={"name": f"class {number}"})
        meter.over(over.model_copy(update={"slo": slo}))
    names = {key[0] for key in change(metrics._judged, before)}
    assert len(names) == 33 and "other" in names
