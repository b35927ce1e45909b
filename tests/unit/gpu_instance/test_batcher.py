"""The SLO batcher: legal budgets, progress for every prompt, reaction to spikes."""

import math
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gpu_instance.batcher import (
    FORCED_EVERY,
    Batcher,
    BatcherSettings,
    PromptSpeed,
    PromptView,
    StepLoad,
    in_turn,
    is_lost,
    parse_mode,
    prompt_ranks,
)
from shared.latency_model import LatencyModel, StepShape
from shared.online_latency_model import PROFILED, UNPROFILED, Trust

MODEL = LatencyModel(8.0, 0.04, 6e-5, 0.04, 2e-6)
PROMPTS = st.lists(st.tuples(st.integers(1, 20_000), st.integers(0, 20_000)), max_size=6)


SPEED = PromptSpeed(1000.0)


def exact() -> Batcher:
    return Batcher(MODEL, initial_margin=0.0)


@given(st.integers(0, 600), st.integers(0, 3000), st.floats(-50.0, 200.0), PROMPTS)
def test_budget_holds_every_decode_and_never_more_than_was_asked(
    decodes: int, context: int, slack_ms: float, prompts: list[tuple[int, int]]
) -> None:
    plan = exact().plan(StepLoad(decodes, decodes * context, slack_ms, prompts))
    assert decodes <= plan.token_budget
    assert plan.token_budget - decodes <= sum(tokens for tokens, _ in prompts)
    assert plan.token_budget <= max(decodes, BatcherSettings().max_num_batched_tokens)


@given(st.integers(1, 300), st.integers(0, 3000), st.floats(1.0, 200.0), PROMPTS)
def test_a_step_with_prefill_is_predicted_within_the_slack(
    decodes: int, context: int, slack_ms: float, prompts: list[tuple[int, int]]
) -> None:
    plan = exact().plan(StepLoad(decodes, decodes * context, slack_ms, prompts))
    left, total, context2 = plan.token_budget - decodes, 0, 0.0
    for tokens, computed in prompts:
        take = min(tokens, left - total)
        total, context2 = total + take, context2 + take * (computed + 0.5 * take)
    shape = StepShape(decodes, decodes * context, total, context2)
    assert total == 0 or MODEL.step_ms(shape) <= slack_ms + 1e-6


def test_a_prompt_progresses_however_full_the_steps_are() -> None:
    batcher, full = exact(), StepLoad(400, 1_200_000, 10.0, [(5000, 0)])
    budgets = [batcher.plan(full).token_budget for _ in range(batcher.settings.lost_every)]
    assert max(budgets) == 400 + batcher.settings.min_prefill_tokens
    assert min(budgets) == 400


def test_without_decodes_a_single_prompt_runs_whole() -> None:
    assert exact().plan(StepLoad(0, 0, math.inf, [(3000, 0)])).token_budget == 3000


def with_graphs() -> Batcher:
    return Batcher(MODEL, BatcherSettings(graph_tokens=512), initial_margin=0.0)


def test_a_step_stays_within_the_captured_graphs_where_hardly_more_would_fit() -> None:
    load = StepLoad(32, 32_000, 50.0, [(20_000, 0)])
    assert exact().plan(load).token_budget > 600
    assert with_graphs().plan(load).token_budget == 512


def test_a_step_goes_beyond_the_graphs_where_much_more_fits() -> None:
    load = StepLoad(32, 32_000, 100.0, [(20_000, 0)])
    assert with_graphs().plan(load) == exact().plan(load)


def test_more_decodes_than_a_graph_holds_are_launched() -> None:
    load = StepLoad(513, 51_300, 100.0, [(20_000, 0)])
    assert with_graphs().plan(load) == exact().plan(load)


def test_a_step_that_its_prompts_do_not_fill_is_not_larger_with_graphs() -> None:
    load = StepLoad(32, 32_000, 100.0, iter([(100, 0), (50, 0)]))
    assert with_graphs().plan(load).token_budget == 182


def run_full_steps(
    batcher: Batcher, load: StepLoad, took: float, seen: float | None = None, steps: int = 20
) -> None:
    """Steps as large as planned; ``took`` and ``seen`` are times the prediction."""
    for _ in range(steps):
        plan = batcher.plan(load)
        tokens = plan.token_budget - load.num_decodes
        shape = StepShape(
            load.num_decodes, load.decode_context_tokens, tokens, 0.5 * tokens * tokens
        )
        said_ms = batcher.model.step_ms(shape)
        batcher.observe(plan, shape, took * said_ms, None if seen is None else seen * said_ms)


def test_errors_of_launched_steps_do_not_shrink_those_within_the_graphs() -> None:
    batcher = with_graphs()
    run_full_steps(batcher, StepLoad(32, 32_000, 100.0, [(20_000, 0)]), took=1.0, seen=1.8)
    assert batcher.launched.limit_ms(100.0) < 80.0
    assert batcher.captured.limit_ms(100.0) == 100.0


@given(st.integers(0, 600), st.integers(0, 3000), st.floats(1.0, 200.0), PROMPTS)
def test_with_graphs_every_decode_still_has_its_place_and_no_step_is_larger_than_without(
    decodes: int, context: int, slack_ms: float, prompts: list[tuple[int, int]]
) -> None:
    load = StepLoad(decodes, decodes * context, slack_ms, prompts)
    assert decodes <= with_graphs().plan(load).token_budget <= exact().plan(load).token_budget


def test_what_the_host_adds_to_a_step_widens_the_margin_and_leaves_the_model_as_it_is() -> None:
    batcher = exact()
    run_full_steps(batcher, StepLoad(32, 32_000, 50.0, [(20_000, 0)]), took=1.0, seen=1.1)
    assert batcher.margin == pytest.approx(0.1, abs=0.02)
    assert batcher.model == pytest.approx(MODEL)


def test_static_mode_always_gives_n_tokens() -> None:
    batcher = Batcher(MODEL, mode="static:512")
    assert batcher.plan(StepLoad(0, 0, math.inf, [(9000, 0)])).token_budget == 512
    assert batcher.plan(StepLoad(600, 600, 1.0)).token_budget == 600


def test_a_spike_shrinks_the_next_budget_at_once_and_it_recovers() -> None:
    batcher = exact()
    load = StepLoad(32, 32_000, 50.0, [(20_000, 0)])
    before = batcher.plan(load)
    batcher.observe(before, StepShape(32, 32_000, 700, 245_000.0), 150.0)
    after = batcher.plan(load)
    assert after.token_budget < 0.6 * before.token_budget
    for _ in range(2000):
        plan = batcher.plan(load)
        tokens = plan.token_budget - 32
        shape = StepShape(32, 32_000, tokens, 0.5 * tokens * tokens)
        batcher.observe(plan, shape, MODEL.step_ms(shape))
    assert batcher.plan(load).token_budget > 0.9 * before.token_budget


def test_small_steps_that_are_slower_than_said_but_in_time_make_the_next_no_smaller() -> None:
    batcher, load = exact(), StepLoad(4, 4000, 50.0, [(20_000, 0)])
    spike = batcher.plan(load)
    batcher.observe(spike, StepShape(4, 4000, 900, 405_000.0), 500.0)
    assert batcher.relief == batcher.settings.spike_floor
    for _ in range(100):
        plan = batcher.plan(load)
        tokens = plan.token_budget - load.num_decodes
        shape = StepShape(4, 4000, tokens, 0.5 * tokens * tokens)
        batcher.observe(plan, shape, min(batcher.model.step_ms(shape) + 20.0, 50.0))
    assert batcher.relief > 0.95


def test_what_small_steps_are_late_by_leaves_the_size_of_full_ones_as_it_is() -> None:
    batcher, load = exact(), StepLoad(4, 4000, 50.0, [(20_000, 0)])
    small = StepShape(4, 4000, 4, 4000.0)
    for _ in range(400):
        run_full_steps(batcher, load, took=1.0, steps=1)
        batcher.observe(batcher.plan(load), small, batcher.model.step_ms(small) + 20.0)
    assert batcher.plan(load).limit_ms == pytest.approx(50.0, rel=1e-3)


def test_steps_are_sized_so_that_the_late_ones_end_in_time_too() -> None:
    batcher, load = exact(), StepLoad(32, 32_000, 50.0, [(20_000, 0)])
    for index in range(600):
        run_full_steps(batcher, load, took=1.0, seen=1.25 if index % 20 == 0 else 1.0, steps=1)
    assert 1.2 * batcher.plan(load).limit_ms < 50.0
    assert batcher.plan(load).limit_ms > 35.0


class Jitter:
    """Steps of an engine that launches those with prompts one kernel at a time: a least time, now
    and then with much on top of it, which larger steps hide."""

    def __init__(self, seed: int, most_ms: float) -> None:
        self._draw, self._most_ms = Random(seed), most_ms

    def step_ms(self, shape: StepShape) -> float:
        draw, said_ms = self._draw, MODEL.step_ms(shape)
        if not shape.prefill_tokens:
            return said_ms * draw.lognormvariate(0.0, 0.02)
        launch_ms = 12.0 + draw.expovariate(1.0)
        if draw.random() < 0.1:
            launch_ms = draw.uniform(14.0, self._most_ms)
        hiccup_ms = draw.expovariate(0.1) if draw.random() < 0.002 else 0.0
        return max(launch_ms, said_ms * draw.lognormvariate(0.0, 0.05)) + hiccup_ms


@pytest.mark.parametrize("most_ms", [22.0, 30.0])
@pytest.mark.parametrize("trust", [PROFILED, UNPROFILED])
@pytest.mark.parametrize("seed", range(3))
def test_errors_that_small_steps_are_full_of_do_not_make_all_steps_small(
    seed: int, trust: Trust, most_ms: float
) -> None:
    """As seen on a GPU at a tight objective: a relative margin fed on itself until prompts got a
    few tokens a step, and a model that saw no other steps went astray."""
    engine = Jitter(seed, most_ms)
    batcher = Batcher(MODEL, BatcherSettings(graph_tokens=512), trust=trust, initial_margin=0.2)
    prefill = list[int]()
    for index in range(6000):
        busy = index % 50 < 40
        load = StepLoad(10, 10_000 + index % 900, 25.0, [(20_000, 500)] if busy else [])
        plan = batcher.plan(load)
        tokens = plan.token_budget - 10
        shape = StepShape(10, load.decode_context_tokens, tokens, tokens * (500 + 0.5 * tokens))
        batcher.observe(plan, shape, engine.step_ms(shape))
        if busy and index > 1000:
            prefill.append(tokens)
    fits = MODEL.prefill_tokens_in(25.0 - MODEL.decode_step_ms(10, 10_000), 500)
    assert fmean(prefill) > 0.25 * fits
    shape = StepShape(10, 10_000, 300, 300 * 650.0)
    assert batcher.model.step_ms(shape) == pytest.approx(MODEL.step_ms(shape), rel=0.15)


def test_steps_are_no_smaller_than_their_launch_makes_free() -> None:
    batcher, load = with_graphs(), StepLoad(10, 10_000, 25.0, [(20_000, 500)])
    tail = StepShape(10, 10_000, 1, 500.0)
    for index in range(600):
        run_full_steps(batcher, load, took=1.0, seen=1.3 if index % 3 == 0 else 1.0, steps=1)
        batcher.observe(batcher.plan(StepLoad(10, 10_000, 25.0)), tail, 21.0)
    launch_ms = batcher.online.launch_ms
    assert batcher.captured.limit_ms(25.0) < launch_ms == pytest.approx(21.0, rel=0.1)
    batcher.relief = 1.0
    assert batcher.plan(load).limit_ms == launch_ms
    assert batcher.plan(load._replace(slack_ms=18.0)).limit_ms < 18.0


def test_a_size_that_was_too_late_is_tried_again() -> None:
    batcher, load = exact(), StepLoad(32, 32_000, 50.0, [(20_000, 0)])
    run_full_steps(batcher, load, took=1.0, seen=1.9, steps=3)
    small = batcher.plan(load).limit_ms
    run_full_steps(batcher, load, took=1.0, steps=2 * batcher.settings.retried_every)
    assert batcher.plan(load).limit_ms > 1.3 * small


def test_a_hiccup_does_not_shut_out_a_size() -> None:
    batcher, load = exact(), StepLoad(32, 32_000, 50.0, [(20_000, 0)])
    run_full_steps(batcher, load, took=1.0, seen=1.02, steps=150)
    before = batcher.plan(load).limit_ms
    run_full_steps(batcher, load, took=1.0, seen=1.9, steps=1)
    batcher.relief = 1.0
    assert batcher.plan(load).limit_ms == pytest.approx(before, rel=1e-3)
    run_full_steps(batcher, load, took=1.0, seen=1.9, steps=1)  # one too many
    batcher.relief = 1.0
    assert batcher.plan(load).limit_ms < 0.95 * before


def test_a_step_whose_end_is_seen_late_for_the_launch_of_the_next_was_not_too_large() -> None:
    batcher, load = with_graphs(), StepLoad(10, 10_000, 40.0, [(20_000, 500)])
    run_full_steps(batcher, load, took=1.0)
    plan = batcher.plan(load)
    shape = StepShape(10, 10_000, 300, 300 * 650.0)
    took_ms = batcher.online.step_ms(shape)
    for _ in range(100):
        batcher.observe(plan, shape, took_ms, seen_ms=took_ms + 30.0, next_tokens=2_000)
    assert batcher.captured.limit_ms(took_ms) == pytest.approx(took_ms)
    assert batcher.relief < 1.0
    for _ in range(100):
        batcher.observe(plan, shape, took_ms, seen_ms=took_ms + 30.0, next_tokens=100)
    assert batcher.captured.limit_ms(took_ms) < 0.9 * took_ms


def test_the_margin_told_is_that_of_the_steps_planned_last_and_none_in_static_mode() -> None:
    batcher, margins = with_graphs(), []
    for slack_ms, kind in ((20.0, batcher.captured), (200.0, batcher.launched)):
        load = StepLoad(32, 32_000, slack_ms, [(20_000, 0)])
        run_full_steps(batcher, load, took=1.0, seen=1.0 + 1e-3 * slack_ms)
        bound_ms = slack_ms * batcher.relief
        assert batcher.plan(load).limit_ms == kind.limit_ms(bound_ms)
        assert batcher.margin == pytest.approx(bound_ms / kind.limit_ms(bound_ms) - 1.0)
        margins.append(batcher.margin)
    assert 0.0 < margins[0] < margins[1]
    batcher.set_mode("static:512")
    assert batcher.margin == 0.0


@given(st.integers(1, 100), st.integers(0, 3000), st.floats(10.0, 200.0))
def test_prompts_are_judged_by_the_speed_of_steps_that_keep_the_margin(
    decodes: int, context: int, tbt_ms: float
) -> None:
    wary, at_half = Batcher(MODEL, initial_margin=1.0), exact()
    speed = wary.prompt_speed(decodes, decodes * context, tbt_ms)
    assert speed == at_half.prompt_speed(decodes, decodes * context, 0.5 * tbt_ms)


@pytest.mark.parametrize("mode", ["", "static", "static:", "static:0", "static:-1", "fast"])
def test_an_unknown_mode_is_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="batcher mode"):
        parse_mode(mode)


def ranked(prompts: list[PromptView], now_s: float = 5.0) -> list[PromptView]:
    return in_turn(prompts, prompt_ranks(prompts, now_s, SPEED), lost_turn=False)


def test_lost_prompts_go_after_those_that_can_make_it() -> None:
    lost_old, lost_new = PromptView(0.0, 1.0, 100), PromptView(1.0, 2.0, 100)
    soon, later = PromptView(4.0, 6.0, 100), PromptView(4.0, 7.0, 100)
    assert ranked([later, lost_new, soon, lost_old]) == [soon, later, lost_old, lost_new]


def test_the_end_of_a_prompt_does_not_queue_behind_longer_ones_even_past_its_deadline() -> None:
    tail, late_tail = PromptView(4.0, 9.0, 1), PromptView(0.0, 1.0, 1)
    soon, later = PromptView(4.0, 6.0, 100), PromptView(4.0, 7.0, 100)
    assert ranked([later, tail, soon, late_tail]) == [late_tail, tail, soon, later]


def test_in_a_turn_of_the_lost_only_their_oldest_leads() -> None:
    lost_old, lost_new = PromptView(0.0, 1.0, 100), PromptView(1.0, 2.0, 100)
    tail, soon = PromptView(4.0, 9.0, 1), PromptView(4.0, 6.0, 100)

    def order(prompts: list[PromptView], lost_turn: bool) -> list[PromptView]:
        return in_turn(prompts, prompt_ranks(prompts, 5.0, SPEED), lost_turn)

    every = [soon, lost_new, tail, lost_old]
    assert order(every, lost_turn=False) == [tail, soon, lost_old, lost_new]
    assert order(every, lost_turn=True) == [lost_old, tail, soon, lost_new]
    assert order([soon, tail], lost_turn=True) == [tail, soon]
    assert order([], lost_turn=True) == []


def test_a_prompt_is_lost_when_its_step_ends_too_late() -> None:
    prompt = PromptView(0.0, 1.0, 100)
    assert not is_lost(prompt, 0.95, PromptSpeed(10_000.0))
    assert is_lost(prompt, 0.95, PromptSpeed(10_000.0, step_s=0.1))


def test_a_prompt_is_judged_by_the_speed_that_the_decodes_leave_it() -> None:
    prompt, batcher = PromptView(0.0, 1.0, 5000), exact()
    assert not is_lost(prompt, 0.5, batcher.prompt_speed(10, 10_000, 100.0))
    assert is_lost(prompt, 0.5, batcher.prompt_speed(300, 300_000, 40.0))


def test_without_decodes_the_long_prompts_yield_as_early_as_beside_them() -> None:
    batcher = exact()
    speed, whole = batcher.prompt_speed(0, 0, math.inf), 1e3 / MODEL.prefill_ms
    assert speed.tokens_per_s == pytest.approx(batcher.settings.free_judged_share * whole)
    short, long = PromptView(0.0, 1.0, 500), PromptView(0.0, 1.0, 5000)
    assert not is_lost(short, 0.5, speed)
    assert is_lost(long, 0.5, speed)
    assert not is_lost(long, 0.5, PromptSpeed(whole))


def test_a_prompt_in_reach_of_the_default_objective_is_not_late_as_it_arrives() -> None:
    speed = exact().prompt_speed(0, 0, math.inf)
    for tokens in (17, 8192, 65_536):
        assert not is_lost(PromptView(0.0, 1.0 + 2e-4 * tokens, tokens), 0.0, speed)


@given(st.integers(0, 600), st.integers(0, 3000), st.floats(1.0, 60_000.0))
def test_prompts_run_at_the_speed_that_is_reckoned_with(
    decodes: int, context: int, tbt_ms: float
) -> None:
    batcher, total = exact(), decodes * context
    speed = batcher.prompt_speed(decodes, total, tbt_ms)
    assert 0.0 < speed.tokens_per_s <= 1e3 / MODEL.prefill_ms
    plans = [
        batcher.plan(StepLoad(decodes, total, tbt_ms, [(100_000, 1024)]))
        for _ in range(FORCED_EVERY)
    ]
    if decodes:
        tokens = [plan.token_budget - decodes for plan in plans]
        assert speed.tokens_per_s * speed.step_s * FORCED_EVERY <= sum(tokens) + 1e-6
        took_ms = MODEL.decode_step_ms(decodes, total) + MODEL.prompt_ms(min(tokens), 1024)
        assert took_ms == pytest.approx(1e3 * speed.step_s, rel=1e-6)


def test_speed_in_static_mode_is_that_of_steps_of_n_tokens_whatever_the_slo() -> None:
    speed = Batcher(MODEL, mode="static:512").prompt_speed(112, 0, 1.0)
    assert speed.tokens_per_s * speed.step_s == pytest.approx(400.0)


def test_where_decodes_fill_the_steps_prompts_go_by_age_but_for_ends_of_prompts() -> None:
    speed = exact().prompt_speed(400, 1_200_000, 10.0)
    old, new, tail = PromptView(0.0, 9.0, 100), PromptView(1.0, 3.0, 100), PromptView(2.0, 9.0, 1)
    ranks = prompt_ranks([new, old, tail], 2.0, speed)
    assert in_turn([new, old, tail], ranks, lost_turn=False) == [tail, old, new]


def test_a_prompt_waits_when_its_decode_would_push_the_others_over_their_slo() -> None:
    batcher, decodes = exact(), 350
    now_ms = MODEL.decode_step_ms(decodes, decodes * 700)
    joined_ms = MODEL.decode_step_ms(decodes + 1, decodes * 700 + 3000)
    tail = [(1, 2999)]

    def budget(slack_ms: float) -> int:
        return batcher.plan(StepLoad(decodes, decodes * 700, slack_ms, tail)).token_budget

    assert now_ms + MODEL.prompt_ms(1, 2999) < joined_ms
    assert budget(joined_ms / batcher.settings.decode_fill + 0.01) == decodes + 1
    assert budget(joined_ms - 0.01) == decodes


def test_where_decodes_fill_the_slack_a_prompt_joins_in_less_than_one_step_of_a_hundred() -> None:
    batcher, decodes = exact(), 350
    slack_ms = MODEL.decode_step_ms(decodes, decodes * 700) + 0.01
    full = StepLoad(decodes, decodes * 700, slack_ms, [(1, 2999), (1, 2999)])
    budgets = [batcher.plan(full).token_budget for _ in range(FORCED_EVERY)]
    assert sorted(budgets)[-2:] == [decodes, decodes + 1]


@given(st.integers(0, 512), st.floats(-50.0, 200.0), PROMPTS.filter(bool))
def test_a_prompt_progresses_whatever_runs_beside_it(
    decodes: int, slack_ms: float, prompts: list[tuple[int, int]]
) -> None:
    batcher = exact()
    load = StepLoad(decodes, 700 * decodes, slack_ms if decodes else math.inf, prompts)
    assert any(batcher.plan(load).token_budget > decodes for _ in range(FORCED_EVERY))


@given(st.data())
def test_whatever_is_measured_budgets_stay_legal(data: st.DataObject) -> None:
    """Loads, slacks and step times of any kind: spikes, a machine far from its model, no slack."""
    batcher = Batcher(MODEL, trust=data.draw(st.sampled_from([PROFILED, UNPROFILED])))
    limits = batcher.settings
    for _ in range(2 * limits.lost_every):
        decodes = data.draw(st.integers(0, 512))
        prompts = data.draw(PROMPTS) or [(100, 0)]
        slack_ms = data.draw(st.floats(-50.0, 200.0)) if decodes else math.inf
        plan = batcher.plan(StepLoad(decodes, 700 * decodes, slack_ms, prompts))
        prefill = plan.token_budget - decodes
        assert 0 <= prefill <= max(sum(tokens for tokens, _ in prompts), limits.min_prefill_tokens)
        assert plan.token_budget <= max(
            decodes + limits.min_prefill_tokens, limits.max_num_batched_tokens
        )
        shape = StepShape(decodes, 700 * decodes, prefill, 0.5 * prefill * prefill)
        batcher.observe(plan, shape, data.draw(st.floats(0.01, 20_000.0)))
        assert limits.spike_floor <= batcher.relief <= 1.0
        assert 0.0 <= batcher.margin <= limits.max_margin + 1e-9
