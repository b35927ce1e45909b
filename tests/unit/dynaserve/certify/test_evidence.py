from dataclasses import replace

import pytest

from dynaserve.certify.evidence import Evidence, objection, read_evidence, uncut_objection
from tests.unit.dynaserve.certify.samples import case, handoff_record, request_record


def view(cut: int | None = 40) -> dict[str, object]:
    return {
        "requests": [request_record(cut).model_dump(mode="json")],
        "handoffs": [handoff_record().model_dump(mode="json")],
    }


def test_records_are_read_from_the_pools_answer() -> None:
    assert read_evidence(view()) == Evidence(request_record(), handoff_record())


def test_a_cut_request_without_the_record_of_its_handoff_is_not_yet_evidence() -> None:
    assert read_evidence({**view(), "handoffs": []}) is None


def test_an_uncut_request_needs_no_handoff() -> None:
    found = read_evidence({**view(None), "handoffs": []})
    assert found is not None
    assert uncut_objection(found) is None


def test_several_choices_or_strange_records_are_no_evidence() -> None:
    doubled = view()
    assert read_evidence({**doubled, "requests": doubled["requests"] * 2}) is None  # type: ignore[operator]
    assert read_evidence({"requests": [{"kind": "request"}], "handoffs": []}) is None


def test_a_run_that_was_cut_and_handed_over_counts() -> None:
    assert objection(case(), Evidence(request_record(), handoff_record())) is None


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (None, "no record of it"),
        (Evidence(request_record(cut=None), None), "cut at None"),
        (Evidence(request_record(cut=39), handoff_record()), "cut at 39, not 40"),
        (Evidence(request_record(epochs=2), handoff_record()), "placed 2 times"),
        (Evidence(request_record(), None), "no record of its handoff"),
        (Evidence(request_record(), handoff_record("recomputed")), "ended as recomputed"),
        (Evidence(request_record(), handoff_record("not_needed")), "ended as not_needed"),
        (Evidence(request_record(), handoff_record("ended")), "ended as ended"),
        (Evidence(request_record(), handoff_record(num_bytes=0)), "no KV moved"),
    ],
)
def test_a_run_that_was_not_what_it_should_be_does_not_count(
    evidence: Evidence | None, reason: str
) -> None:
    assert reason in (objection(case(), evidence) or "")


def test_kv_that_went_the_other_way_does_not_count() -> None:
    by_tcp = case(number=1)
    found = Evidence(request_record(), handoff_record())
    assert "by shm, not tcp" in (objection(by_tcp, found) or "")


def test_with_caching_on_a_prefix_that_was_there_already_counts() -> None:
    found = Evidence(request_record(), handoff_record("not_needed", num_bytes=0))
    assert objection(replace(case(), caching=True), found) is None


@pytest.mark.parametrize(("outcome", "counts"), [("ended", True), ("adopted", False)])
def test_a_request_that_ends_before_its_cut_must_not_hand_over(outcome: str, counts: bool) -> None:
    found = Evidence(request_record(), handoff_record(outcome))
    assert (objection(case(hands_over=False), found) is None) is counts


def test_alpha_may_reach_the_cut_before_it_hears_of_a_stop_string() -> None:
    late = case(hands_over=False)
    late = replace(late, subject=replace(late.subject, sampling={"stop": ["a b"]}))
    assert objection(late, Evidence(request_record(), handoff_record("adopted"))) is None


def test_a_reference_that_was_cut_is_objected_to() -> None:
    assert "cut at 40" in (uncut_objection(Evidence(request_record(), handoff_record())) or "")
    assert uncut_objection(None) is not None
