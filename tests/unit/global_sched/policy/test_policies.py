"""Properties every policy keeps, and what `dynaserve` does in the situations it is made for."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.global_sched.policy import POLICIES
from services.global_sched.policy.decode_target import TargetSettings
from services.global_sched.policy.dynaserve import DynaServe, DynaServeSettings
from services.global_sched.policy.predict import pace_of
from services.global_sched.policy.views import (
    Decision,
    InstanceView,
    LengthQuantiles,
    NoInstance,
    PoolView,
    RequestView,
    Role,
)
from shared.latency_model import LatencyModel

MODEL = LatencyModel(8.8, 0.043, 6e-5, 0.039, 1.8e-6)
NO_CONTROL = DynaServeSettings(control_share=0.0)


def request(prompt: int = 2000, output: float = 200.0, slo_tbt_s: float = 0.025) -> RequestView:
    length = LengthQuantiles(output / 4, output, output * 3, output)
    return RequestView("r", 0.0, prompt, 4096, length, 1.0 + 2e-4 * prompt, slo_tbt_s)


def instance(index: int, decodes: int = 0, queue: int = 0, free: int | None = None) -> InstanceView:
    free = 526_000 - 1500 * decodes if free is None else free
    return InstanceView(
        f"i{index}",
        MODEL,
        num_decodes=decodes,
        decode_context_tokens=1500 * decodes,
        outstanding_prefill_tokens=queue,
        kv_free_tokens=free,
        kv_capacity_tokens=526_000,
    )


@st.composite
def pools(draw: st.DrawFn) -> PoolView:
    some: list[Role] = ["any", "prefill", "decode"]
    roles = draw(st.lists(st.sampled_from(some), min_size=1, max_size=8))
    views = tuple(
        replace(
            instance(
                index,
                draw(st.integers(0, 300)),
                draw(st.integers(0, 50_000)),
                draw(st.integers(0, 526_000)),
            ),
            role=role,
        )
        for index, role in enumerate(roles)
    )
    return PoolView(0.0, views)


requests = st.builds(
    RequestView,
    request_id=st.uuids().map(str),
    arrival_s=st.just(0.0),
    num_prompt_tokens=st.integers(1, 50_000),
    max_tokens=st.integers(1, 8192),
    length=st.floats(1.0, 8192.0).map(lambda d: LengthQuantiles(d / 10, d, d * 3, d)),
    slo_ttft_s=st.floats(0.01, 10.0),
    slo_tbt_s=st.floats(0.005, 0.5),
)


def assert_legal(decision: Decision, asked: RequestView, pool: PoolView) -> None:
    ids = {view.instance_id for view in pool.instances}
    assert decision.alpha_id in ids
    assert (decision.cut is None) == (decision.beta_id is None) == (decision.kind == "unsplit")
    if decision.cut is not None:
        assert decision.beta_id in ids - {decision.alpha_id}
        assert 1 <= decision.cut <= asked.num_prompt_tokens + asked.max_tokens - 2


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(asked=requests, pool=pools())
def test_every_decision_is_legal(name: str, asked: RequestView, pool: PoolView) -> None:
    try:
        decision = POLICIES[name]().place(asked, pool)
    except NoInstance:
        assert name == "disaggregated"
        return
    assert_legal(decision, asked, pool)
    for candidate in decision.candidates:
        assert candidate.cut is None or 1 <= candidate.cut <= asked.max_cut


@given(asked=requests, pool=pools())
def test_a_cut_is_never_predicted_worse_than_uncut(asked: RequestView, pool: PoolView) -> None:
    decision = DynaServe(NO_CONTROL).place(asked, pool)
    assert decision.unsplit is not None
    assert decision.chosen.cost <= decision.unsplit.cost
    assert decision.chosen.cost <= min(
        one.prediction.cost for one in decision.candidates if one.cut is None
    )


@given(asked=requests, pool=pools())
def test_the_same_views_give_the_same_decision(asked: RequestView, pool: PoolView) -> None:
    assert DynaServe().place(asked, pool) == DynaServe().place(asked, pool)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_an_empty_pool_is_an_error(name: str) -> None:
    with pytest.raises(NoInstance):
        POLICIES[name]().place(request(), PoolView(0.0, ()))


def test_at_a_tight_slo_the_prompt_goes_to_the_idle_instance_and_the_cut_hides_the_handoff() -> (
    None
):
    pool = PoolView(0.0, (instance(0, decodes=60), instance(1)))
    decision = DynaServe(NO_CONTROL).place(request(), pool)
    assert (decision.alpha_id, decision.beta_id, decision.cut) == ("i1", "i0", 1999)
    assert decision.decode_holders == ("i0",)


def test_at_a_loose_slo_everybody_decodes_and_nothing_is_cut() -> None:
    pool = PoolView(0.0, (instance(0, decodes=60), instance(1)))
    decision = DynaServe(NO_CONTROL).place(request(slo_tbt_s=0.1), pool)
    assert decision.kind == "unsplit"
    assert decision.decode_holders == ("i0", "i1")


@given(
    pools(),
    st.floats(0.005, 0.5),
    st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)).map(sorted),
)
def test_prompts_beside_decodes_are_never_predicted_faster_with_a_larger_margin(
    pool: PoolView, slo_tbt_s: float, margins: list[float]
) -> None:
    for view in pool.instances:
        narrow, wide = (pace_of(replace(view, step_margin=m), slo_tbt_s) for m in margins)
        assert wide.tokens_per_ms <= narrow.tokens_per_ms
        assert wide.wait_ms >= narrow.wait_ms
        assert wide.kept_tbt_ms <= narrow.kept_tbt_ms <= 1e3 * slo_tbt_s


@given(st.floats(0.0, 1.0))
def test_decodes_are_gathered_where_a_step_costs_a_fifth_of_what_the_margin_leaves(
    margin: float,
) -> None:
    views = [replace(instance(i, decodes=20), step_margin=margin) for i in range(2)]
    decision = DynaServe(NO_CONTROL).place(request(slo_tbt_s=0.05), PoolView(0.0, tuple(views)))
    left_ms = 50.0 / (1.0 + margin)
    gathers = MODEL.base_ms >= TargetSettings().least_base_share * left_ms
    assert len(decision.decode_holders) == (1 if gathers else 2)


def test_decodes_that_fit_the_objective_but_not_with_the_margin_need_a_further_holder() -> None:
    def holders(margin: float) -> int:
        views = [replace(instance(i, decodes=n), step_margin=margin) for i, n in ((0, 60), (1, 0))]
        pool = PoolView(0.0, tuple(views))
        return len(DynaServe(NO_CONTROL).place(request(), pool).decode_holders)

    assert (holders(0.0), holders(0.5)) == (1, 2)


def test_the_gap_of_a_cut_at_the_prompts_end_is_judged_by_steps_as_long_as_they_may_get() -> None:
    views = [replace(instance(i, decodes=60 - 60 * i, queue=500), step_margin=0.5) for i in (0, 1)]
    pool = PoolView(0.0, tuple(views))
    candidates = DynaServe(NO_CONTROL).place(request(output=50.0, slo_tbt_s=0.05), pool).candidates
    before, at = (next(c for c in candidates if c.cut == cut) for cut in (1999, 2000))
    assert before.prediction.cost - before.prediction.ttft_s < 0.1
    # Step in progress and next one: half of the requests would see them over the SLO together.
    assert at.prediction.cost - at.prediction.ttft_s > 0.4 * DynaServeSettings().miss_weight_s


def test_decode_holders_follow_the_load() -> None:
    few = PoolView(0.0, tuple(instance(i, decodes=10) for i in range(8)))
    many = PoolView(0.0, tuple(instance(i, decodes=80) for i in range(8)))
    asked = request()
    assert len(DynaServe().place(asked, few).decode_holders) <= 2
    assert len(DynaServe().place(asked, many).decode_holders) >= 6


def test_a_queue_of_short_outputs_asks_for_fewer_holders_than_one_of_long_outputs() -> None:
    queued = replace(
        instance(0, decodes=10, queue=20_000),
        pending_decodes=150,
        pending_decode_context_tokens=225_000,
    )
    pool = PoolView(0.0, (queued, *(instance(i) for i in range(1, 4))))
    short = DynaServe().place(request(output=10.0), pool)
    long = DynaServe().place(request(output=1000.0), pool)
    assert len(short.decode_holders) < len(long.decode_holders)


def test_parts_of_prompts_that_come_later_do_not_keep_a_holder_idle() -> None:
    waiting = replace(instance(0, decodes=40), inbound_prefill_tokens=4_000)
    pool = PoolView(0.0, (waiting, instance(1, queue=30_000)))
    decision = DynaServe(NO_CONTROL).place(request(prompt=1000), pool)
    assert (decision.kind, decision.alpha_id) == ("unsplit", "i0")


def test_cached_tokens_draw_a_request_to_their_holder() -> None:
    pool = PoolView(0.0, (instance(0), instance(1)))
    asked = request(prompt=8000, slo_tbt_s=0.1)
    warm = RequestView("r", 0.0, 8000, 64, asked.length, 2.6, 0.1, cached_tokens={"i1": 7000})
    assert DynaServe().place(warm, pool).alpha_id == "i1"


def test_a_class_the_guard_turned_off_and_the_control_group_stay_uncut() -> None:
    views = (instance(0, decodes=60), instance(1))
    off = PoolView(0.0, views, unsplit_classes=frozenset({"default"}))
    assert DynaServe(NO_CONTROL).place(request(), off).kind == "unsplit"
    everybody = DynaServeSettings(control_share=1.0)
    decision = DynaServe(everybody).place(request(), PoolView(0.0, views))
    assert decision.kind == "unsplit"
    assert decision.control_group


def test_disaggregated_cuts_at_the_prompt_between_its_roles() -> None:
    views = (replace(instance(0), role="prefill"), replace(instance(1), role="decode"))
    decision = POLICIES["disaggregated"]().place(request(), PoolView(0.0, views))
    assert (decision.alpha_id, decision.beta_id, decision.cut) == ("i0", "i1", 2000)


def test_round_robin_takes_turns() -> None:
    policy, pool = POLICIES["round_robin"](), PoolView(0.0, (instance(0), instance(1)))
    assert [policy.place(request(), pool).alpha_id for _ in range(3)] == ["i0", "i1", "i0"]


@given(first=requests, asked=requests, pool=pools())
def test_what_views_keep_from_one_request_changes_nothing_for_the_next(
    first: RequestView, asked: RequestView, pool: PoolView
) -> None:
    DynaServe().place(first, pool)
    fresh = PoolView(0.0, tuple(replace(view) for view in pool.instances))
    assert DynaServe().place(asked, pool) == DynaServe().place(asked, fresh)


@given(asked=requests, pool=pools())
def test_every_weighed_way_is_told_and_the_choice_is_one_of_the_cheapest(
    asked: RequestView, pool: PoolView
) -> None:
    decision = DynaServe(NO_CONTROL).place(asked, pool)
    uncut = [each for each in decision.candidates if each.cut is None]
    assert [each.alpha_id for each in uncut] == [view.instance_id for view in pool.instances]
    assert (decision.alpha_id, decision.beta_id, decision.cut, decision.chosen) in (
        decision.candidates
    )
    cheapest = min(each.prediction.cost for each in decision.candidates)
    assert decision.chosen.cost == cheapest or decision.kind == "unsplit"


def test_a_long_prompt_is_predicted_by_its_own_context() -> None:
    def ttft_ms(prompt: int, decodes: int) -> float:
        pool = PoolView(0.0, (instance(0, decodes),))
        return 1e3 * DynaServe(NO_CONTROL).place(request(prompt), pool).chosen.ttft_s

    # Without decodes a step's base cost is a twentieth of it.
    assert MODEL.prompt_ms(24_000, 0) < ttft_ms(24_000, 0) < 1.1 * MODEL.prompt_ms(24_000, 0)
    shares = [ttft_ms(prompt, 50) / MODEL.prompt_ms(prompt, 0) for prompt in (1_000, 24_000)]
    assert shares[0] == pytest.approx(shares[1])


def test_cached_tokens_are_context_and_not_work() -> None:
    pool = PoolView(0.0, (instance(0),))
    asked = replace(request(20_000), cached_tokens={"i0": 16_000})
    ttft_ms = 1e3 * DynaServe(NO_CONTROL).place(asked, pool).chosen.ttft_s
    assert MODEL.prompt_ms(4_000, 16_000) < ttft_ms < 1.1 * MODEL.prompt_ms(4_000, 16_000)
