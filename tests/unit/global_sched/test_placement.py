"""What comes of a decision: legal cuts only, and the same coordinator for everybody."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.global_sched.length_predictor import LengthPredictor
from services.global_sched.placement import (
    FORCED_CUT_PARAM,
    FORCED_TRANSPORT_PARAM,
    Placement,
    carry_out,
    choose_coordinator,
    decide,
    request_view,
)
from services.global_sched.policy import POLICIES
from services.global_sched.pool_view import PoolTracker
from shared.errors import InvalidRequest, NoInstance
from shared.schemas.message import num_tokens, pack_tokens
from shared.schemas.place import Place
from shared.schemas.registry import InstanceRecord
from tests.unit.global_sched.pool_stage import GEOMETRY, instance, question

TWO = (instance("a", role="prefill"), instance("b", role="decode"))
OTHER = GEOMETRY.model_copy(update={"block_size": 32, "dtype": "bfloat16"})


def place_it(
    place: Place,
    policy: str = "colocated",
    records: tuple[InstanceRecord, ...] = TWO,
    coordinators: tuple[str, ...] = ("c",),
) -> Placement:
    tracker = PoolTracker()
    for record in records:
        tracker.on_record(record.instance_id, record)
    ready = tracker.ready(place.avoid)
    request = request_view(place, LengthPredictor())
    decision = decide(
        place,
        request,
        POLICIES[policy](),
        tracker.view(0.0, ready),
        {record.instance_id: record for record in ready},
        bool(coordinators),
    )
    return carry_out(
        place,
        request,
        decision,
        scheduler_id="s",
        policy=policy,
        records={record.instance_id: record for record in ready},
        coordinators=coordinators,
        now_s=0.0,
        handoff_timeout_s=10.0,
        max_candidates=2,
    )


@pytest.mark.parametrize("policy", sorted(POLICIES))
@given(prompt=st.integers(1, 200), max_tokens=st.integers(1, 50), data=st.data())
def test_a_forced_cut_in_range_is_honoured_by_every_policy(
    policy: str, prompt: int, max_tokens: int, data: st.DataObject
) -> None:
    last = prompt + max_tokens - 2
    if last < 1:
        return
    cut = data.draw(st.integers(1, last))
    placed = place_it(question(prompt=prompt, max_tokens=max_tokens, cut=cut), policy)
    assert placed.plan.cut == cut
    assert {placed.plan.alpha_id, placed.plan.beta_id} == {"a", "b"}
    (alpha_id, alpha), (beta_id, beta) = placed.segments
    assert (alpha_id, alpha.role) == (placed.plan.alpha_id, "alpha")
    assert (beta_id, beta.role) == (placed.plan.beta_id, "beta")
    assert alpha.handoff is not None and beta.handoff is not None and placed.opening is not None
    assert alpha.handoff.cut == beta.handoff.cut == placed.opening.cut == cut
    assert (alpha.handoff.peer_id, beta.handoff.peer_id) == (beta_id, alpha_id)
    assert alpha.request is beta.request


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_forced_cut_tells_what_the_policy_would_have_done(policy: str) -> None:
    own, forced = (place_it(question(cut=cut), policy).plan for cut in (None, 5))
    assert forced.candidates == own.candidates
    assert forced.unforced is not None and own.unforced is None
    unforced = (forced.unforced.alpha_id, forced.unforced.beta_id, forced.unforced.cut)
    assert unforced == (own.alpha_id, own.beta_id, own.cut)
    assert forced.unforced.prediction == own.chosen
    assert forced.reason == f"forced by the request; else: {own.reason}"
    assert forced.chosen is None  # nobody weighed a cut at 5
    assert not forced.control_group


def test_a_forced_cut_that_was_weighed_has_its_prediction() -> None:
    plan = place_it(question(cut=100), "dynaserve").plan
    assert plan.cut == 100 == num_tokens(question().request.prompt_token_ids)
    assert plan.chosen is not None
    assert plan.chosen == plan.disaggregated


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("cut", [119, 1000])
def test_a_forced_cut_out_of_range_is_refused_and_names_the_parameter(
    policy: str, cut: int
) -> None:
    with pytest.raises(InvalidRequest, match="between 1 and 118") as raised:
        place_it(question(cut=cut), policy)
    assert raised.value.param == FORCED_CUT_PARAM


@pytest.mark.parametrize(
    ("place", "records", "coordinators", "why"),
    [
        (question(cut=5, splittable=False), TWO, ("c",), "one instance"),
        (question(cut=5, pooling_params={}), TWO, ("c",), "one instance"),
        (question(cut=5), TWO, (), "KV-transfer"),
        (question(cut=5), TWO[:1], ("c",), "two ready instances"),
        (question(cut=5), (TWO[0], instance("b", geometry=OTHER)), ("c",), "equal KV geometry"),
        (question(cut=5), (TWO[0], instance("b", state="draining")), ("c",), "two ready"),
    ],
)
def test_a_forced_cut_that_cannot_be_is_refused(
    place: Place, records: tuple[InstanceRecord, ...], coordinators: tuple[str, ...], why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why):
        place_it(place, records=records, coordinators=coordinators)


def test_a_forced_cut_avoids_an_alpha_without_a_peer_of_its_geometry() -> None:
    records = (instance("odd", geometry=OTHER), instance("x"), instance("y"))
    for policy in POLICIES:
        plan = place_it(question(cut=50), policy, records).plan
        assert {plan.alpha_id, plan.beta_id} == {"x", "y"}


@pytest.mark.parametrize(
    ("place", "records", "coordinators", "why"),
    [
        (question(splittable=False), TWO, ("c",), "one instance"),
        (question(output_token_ids=pack_tokens([1])), TWO, ("c",), "one instance"),
        (question(), TWO, (), "no KV-transfer coordinator"),
        (
            question(),
            (TWO[0], instance("b", role="decode", geometry=OTHER)),
            ("c",),
            "differ in dtype, block_size",
        ),
    ],
)
def test_what_cannot_be_cut_runs_whole_and_the_plan_says_why(
    place: Place, records: tuple[InstanceRecord, ...], coordinators: tuple[str, ...], why: str
) -> None:
    placed = place_it(place, "disaggregated", records, coordinators)
    assert placed.plan.cut is None and placed.plan.beta_id is None and placed.opening is None
    assert why in placed.plan.reason
    assert [segment.role for _, segment in placed.segments] == ["whole"]
    assert placed.segments[0][1].handoff is None


def test_a_resumed_request_runs_whole_though_it_once_had_a_forced_cut() -> None:
    place = question(cut=50, epoch=2, output_token_ids=pack_tokens([1, 2]))
    assert place_it(place).plan.cut is None


def test_a_static_split_is_at_the_prompts_end_between_the_roles() -> None:
    plan = place_it(question(), "disaggregated").plan
    assert (plan.alpha_id, plan.beta_id, plan.cut) == ("a", "b", 100)
    assert plan.coordinator_id == "c" and plan.handoff_id == "r.1"


def test_a_forced_transport_is_carried_to_the_coordinator() -> None:
    opening = place_it(question(cut=50, transport="tcp")).opening
    assert opening is not None and opening.transport == "tcp"


def test_a_forced_transport_that_joins_no_two_instances_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="nccl") as raised:
        place_it(question(cut=50, transport="nccl"))
    assert raised.value.param == FORCED_TRANSPORT_PARAM
    plan = place_it(question(transport="nccl"), "disaggregated").plan
    assert plan.cut is None and "nccl" in plan.reason


def test_an_empty_pool_takes_nothing() -> None:
    with pytest.raises(NoInstance):
        place_it(question(), records=())


@pytest.mark.parametrize(("deadline_s", "expected_s"), [(1e9, 12.0), (3.0, 3.0)])
def test_a_handoff_may_take_longer_when_alpha_decodes_but_not_past_the_requests_deadline(
    deadline_s: float, expected_s: float
) -> None:
    place = question(cut=110)  # ten tokens of alpha's at twice 0.1 s each, beside 10 s
    request = place.request.model_copy(update={"deadline_s": deadline_s})
    opening = place_it(place.model_copy(update={"request": request})).opening
    assert opening is not None and opening.deadline_s == pytest.approx(expected_s)


@given(st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=2, max_size=6), st.text())
def test_the_coordinator_stays_when_another_one_leaves(names: set[str], handoff_id: str) -> None:
    chosen = choose_coordinator(handoff_id, sorted(names))
    assert chosen == choose_coordinator(handoff_id, sorted(names, reverse=True))
    for other in names - {chosen}:
        assert choose_coordinator(handoff_id, names - {other}) == chosen


def test_handoffs_spread_over_the_coordinators() -> None:
    counts = Counter(choose_coordinator(f"r{i}.1", ["x", "y", "z"]) for i in range(300))
    assert min(counts.values()) > 60
