"""The snapshot: what instances report plus what was placed since, and nothing twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.global_sched.length_predictor import LengthPredictor
from services.global_sched.placement import request_view
from services.global_sched.policy.views import InstanceView
from services.global_sched.pool_view import UNSEEN_S, Burden, PoolTracker, burdens
from shared.schemas.registry import LatencyCoefficients
from shared.schemas.telemetry import InstanceLoad, LinkLoad
from tests.unit.global_sched.pool_stage import instance, load, question


def tracked(*names: str) -> PoolTracker:
    tracker = PoolTracker()
    for name in names:
        tracker.on_record(name, instance(name))
    return tracker


def seen(tracker: PoolTracker, name: str) -> InstanceView:
    views = tracker.view(0.0, tracker.ready()).instances
    return next(view for view in views if view.instance_id == name)


def test_a_placement_counts_until_telemetry_names_it() -> None:
    tracker = tracked("a")
    tracker.on_load(load("a", 1, outstanding_prefill_tokens=10))
    tracker.on_placed("a", "r", Burden(100, 1, 120), 1e9)
    assert seen(tracker, "a").outstanding_prefill_tokens == 110
    assert seen(tracker, "a").pending_decodes == 1
    assert seen(tracker, "a").kv_free_tokens == 16_000 - 120
    tracker.on_load(
        load(
            "a",
            2,
            outstanding_prefill_tokens=110,
            num_waiting=1,
            num_pending_decodes=1,
            admitted_request_ids=["r"],
        )
    )
    assert seen(tracker, "a").outstanding_prefill_tokens == 110
    assert seen(tracker, "a").pending_decodes == 1


def test_a_placement_whose_segment_was_lost_stops_counting() -> None:
    tracker = tracked("a")
    tracker.on_placed("a", "r", Burden(100, 1, 120), 1000.0)
    tracker.on_load(load("a", 1), 1000.0 + UNSEEN_S + 1)
    assert seen(tracker, "a").outstanding_prefill_tokens == 0
    assert (tracker.num_unseen, tracker.unseen_tokens, tracker.num_lost) == (0, 0, 1)


def test_an_old_report_does_not_replace_a_newer_one_but_a_restart_does() -> None:
    tracker = tracked("a")
    tracker.on_load(load("a", 5, num_decodes=5, at_s=10.0))
    tracker.on_load(load("a", 4, num_decodes=4, at_s=9.0))
    assert seen(tracker, "a").num_decodes == 5
    tracker.on_load(load("a", 1, num_decodes=1, at_s=11.0))
    assert seen(tracker, "a").num_decodes == 1


def test_only_ready_instances_are_offered_and_avoided_ones_only_when_nobody_else_is_left() -> None:
    tracker = tracked("a", "b")
    tracker.on_record("c", instance("c", state="draining"))
    assert [r.instance_id for r in tracker.ready()] == ["a", "b"]
    assert [r.instance_id for r in tracker.ready(["a"])] == ["b"]
    assert [r.instance_id for r in tracker.ready(["a", "b"])] == ["a", "b"]
    tracker.on_record("a", None)
    assert [r.instance_id for r in tracker.ready()] == ["b"]


def test_the_view_carries_the_instances_own_model_mode_and_link_speed() -> None:
    tracker = PoolTracker()
    latency = LatencyCoefficients(c0_s=0.01, a_s=1e-5, b_s=0.0, p_s=1e-5, q_s=0.0)
    tracker.on_record("a", instance("a", latency=latency, role="prefill"))
    link = LinkLoad(peer_id="b", transport="shm", bytes_per_s=5e9)
    tracker.on_load(load("a", batcher_mode="static:512", links=[link], slo_headroom=0.5))
    view = seen(tracker, "a")
    assert view.model.base_ms == 10.0 and view.role == "prefill"
    assert (view.static_tokens, view.link_bytes_per_s, view.slo_headroom) == (512, 5e9, 0.5)
    assert tracker.view(0.0, tracker.ready()).kv_bytes_per_token == 200


def test_the_view_carries_the_batchers_margin_and_none_where_reports_do_not_tell_it() -> None:
    tracker = tracked("a")
    told = load("a", step_margin=0.6).model_dump()
    tracker.on_load(InstanceLoad.model_validate(told))
    assert seen(tracker, "a").step_margin == 0.6
    del told["step_margin"]
    tracker.on_load(InstanceLoad.model_validate(told | {"sequence": 2}))
    assert seen(tracker, "a").step_margin == 0.0


def test_roles_can_be_given_at_run_time() -> None:
    tracker = tracked("a", "b")
    tracker.set_roles({"a": "decode"})
    assert (seen(tracker, "a").role, seen(tracker, "b").role) == ("decode", "any")
    tracker.set_roles({})
    assert seen(tracker, "a").role == "any"


def test_reports_and_placements_of_unknown_instances_are_passed_by() -> None:
    tracker = tracked("a")
    tracker.on_load(load("gone"))
    tracker.on_placed("gone", "r", Burden(1, 1, 1), 0.0)
    assert seen(tracker, "a").outstanding_prefill_tokens == 0


def test_prompts_that_are_late_do_not_count_and_those_to_come_count_apart() -> None:
    tracker = tracked("a")
    tracker.on_load(
        load(
            "a",
            1,
            outstanding_prefill_tokens=500,
            late_prefill_tokens=300,
            inbound_prefill_tokens=7,
        )
    )
    tracker.on_placed("a", "r", Burden(0, 1, 120, 40), 1e9)
    assert seen(tracker, "a").outstanding_prefill_tokens == 200
    assert seen(tracker, "a").inbound_prefill_tokens == 47


def test_a_cut_divides_the_prompt_between_the_sides() -> None:
    request = request_view(question(prompt=100), LengthPredictor())
    whole, nobody = burdens(request, None)
    assert (whole.prefill_tokens, whole.decodes, nobody) == (100, 1, None)
    alpha, beta = burdens(request, 60)
    assert beta is not None
    assert (alpha.prefill_tokens, alpha.decodes) == (60, 0)
    assert (beta.prefill_tokens, beta.inbound_tokens, beta.decodes) == (0, 40, 1)
    alpha, beta = burdens(request, 110)
    assert beta is not None
    assert (alpha.prefill_tokens, alpha.decodes, beta.prefill_tokens) == (100, 1, 0)


def test_the_latency_model_is_the_one_the_engine_has_learned_since_it_joined() -> None:
    tracker = tracked("a")
    at_start = seen(tracker, "a").model
    tracker.on_load(load("a"))
    assert seen(tracker, "a").model == at_start
    learned = at_start._replace(base_ms=3.0 * at_start.base_ms)
    tracker.on_load(load("a", 2, latency=LatencyCoefficients.of(learned)))
    assert seen(tracker, "a").model.base_ms == pytest.approx(3.0 * at_start.base_ms)


# What may happen to requests 0..5 on instances a and b, in any order.
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["placed", "reported", "stale report", "over", "left", "came"]),
        st.sampled_from("ab"),
        st.integers(0, 5),
        st.integers(0, 300),
    ),
    max_size=60,
)


@given(EVENTS)
def test_the_shadow_is_never_negative_and_is_gone_when_all_is_reported_or_over(
    events: list[tuple[str, str, int, int]],
) -> None:
    tracker, now_s, sequence = tracked("a", "b"), 100.0, 10
    placed: set[tuple[str, str]] = set()
    here = {"a", "b"}
    for what, name, number, tokens in events:
        now_s += 0.01
        sequence += 1
        request_id = f"r{number}"
        match what:
            case "placed":
                tracker.on_placed(name, request_id, Burden(tokens, 1, 2 * tokens), now_s)
                placed |= {(name, request_id)} if name in here else set()
            case "reported" | "stale report":
                old = what == "stale report"
                report = load(name, 1 if old else sequence, at_s=1.0 if old else now_s)
                shown = report.model_copy(update={"admitted_request_ids": [request_id]})
                tracker.on_load(shown, now_s)
                placed.discard((name, request_id))
            case "over":
                tracker.on_over(name, request_id)
                placed.discard((name, request_id))
            case "left":
                tracker.on_record(name, None, now_s)
                placed = {pair for pair in placed if pair[0] != name}
                here.discard(name)
            case _:
                tracker.on_record(name, instance(name), now_s)
                here.add(name)
        assert tracker.num_unseen == len(placed)
        assert tracker.unseen_tokens >= 0
        for view in tracker.view(now_s, tracker.ready(now_s=now_s)).instances:
            assert view.outstanding_prefill_tokens >= 0 and view.pending_decodes >= 0
    for name, request_id in placed:
        tracker.on_over(name, request_id)
    for name in "ab":
        tracker.on_load(load(name, sequence + 1, at_s=now_s), now_s)
    assert (tracker.num_unseen, tracker.unseen_tokens) == (0, 0)
    for view in tracker.view(now_s, tracker.ready(now_s=now_s)).instances:
        assert (view.outstanding_prefill_tokens, view.pending_decodes) == (0, 0)


def test_the_error_of_what_was_believed_is_told_with_the_report_that_shows_it() -> None:
    tracker = tracked("a")
    tracker.on_load(load("a", 1, outstanding_prefill_tokens=10))
    tracker.on_placed("a", "r", Burden(100, 1, 120), 1.0)
    assert tracker.on_load(load("a", 2, outstanding_prefill_tokens=10), 1.1) is None
    shown = load("a", 3, outstanding_prefill_tokens=70, admitted_request_ids=["r"])
    assert tracker.on_load(shown, 1.2) == 40


def test_a_restarted_instance_has_none_of_what_was_placed_on_it_before() -> None:
    tracker = tracked("a")
    tracker.on_placed("a", "r", Burden(100, 1, 120), 1.0)
    tracker.on_record("a", instance("a", started_s=5.0), 2.0)
    assert seen(tracker, "a").outstanding_prefill_tokens == 0


def test_requests_without_a_first_token_are_counted_once_wherever_they_wait() -> None:
    tracker = tracked("a", "b")
    tracker.on_load(load("a", num_running=5, num_decodes=3, num_waiting=2))
    tracker.on_load(load("b", num_running=1, num_decodes=1, num_waiting_for_kv=4))
    tracker.on_placed("b", "r", Burden(100, 1, 120), 1.0)
    ready = tracker.ready()
    tracker.view(0.0, ready)
    assert tracker.num_queued == 5
