import math

import pytest

from dynaserve.bench.systems import parse_system, parse_systems, ratios
from shared.errors import InvalidRequest


def test_a_system_is_a_policy_and_a_batcher() -> None:
    system = parse_system("colocated/static:8192")

    assert (system.policy, system.batcher) == ("colocated", "static:8192")
    assert system.name == "colocated/static:8192"
    assert system.roles(["a", "b"]) == {}


def test_static_roles_are_half_and_half_unless_said() -> None:
    assert parse_system("disaggregated/slo").roles(["b", "a"]) == {"a": "prefill", "b": "decode"}
    assert parse_system("disaggregated:3p1d/slo").roles(list("abcd")) == {
        "a": "prefill", "b": "prefill", "c": "prefill", "d": "decode",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "number"), [("disaggregated:1p2d/slo", 2), ("disaggregated/slo", 1)]
)
def test_roles_that_do_not_fit_the_pool_are_refused(text: str, number: int) -> None:
    with pytest.raises(InvalidRequest, match="does not fit"):
        parse_system(text).roles([f"i{n}" for n in range(number)])


@pytest.mark.parametrize(
    "text",
    ["", "slo", "dynaserve", "dynaserve/", "dynaserve/static:0", "/slo", "colocated:1p1d/slo"],
)
def test_what_is_no_system_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not POLICY"):
        parse_system(text)


def test_a_system_named_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        parse_systems(["dynaserve/slo", "dynaserve/slo"])


def test_ratios_are_paired_by_repeat() -> None:
    found = ratios({"a": [1.0, 10.0], "b": [2.0, 15.0]})

    assert found["a"] is not None and found["a"].mean == 1.0
    assert found["b"] is not None
    assert (found["b"].mean, found["b"].lowest, found["b"].highest) == (1.75, 1.5, 2.0)


def test_there_is_no_ratio_to_nothing() -> None:
    assert ratios({"a": [0.0], "b": [2.0]}) == {"a": None, "b": None}
    assert ratios({"a": [math.nan], "b": [2.0]}) == {"a": None, "b": None}
