"""A handoff that is late, that never comes, or that is cancelled in each of its states."""

import time

import pytest

from dynaserve.accounts import Accounts, until_balanced
from shared.schemas.handoff import Side
from tests.faults.driver import Driver, Run
from tests.integration.pool_client import Watcher

pytestmark = [pytest.mark.engine, pytest.mark.faults, pytest.mark.timeout(300)]

PROMPT = list(range(400, 600))  # several steps of 64 tokens
P = len(PROMPT)
MAX_TOKENS = 24
A, B = "instance-0", "instance-1"


async def whole_output(driver: Driver, max_tokens: int = MAX_TOKENS) -> list[int]:
    run = driver.new_run(PROMPT, max_tokens)
    await driver.send_whole(run, A)
    await driver.until(run, lambda r: r.finish_reason is not None)
    return run.output


async def send_cut(driver: Driver, run: Run, cut: int, deadline_in_s: float = 20.0) -> None:
    deadline_s = time.time() + deadline_in_s
    await driver.send_side(run, "alpha", A, B, cut, deadline_s)
    await driver.send_side(run, "beta", B, A, cut, deadline_s)
    await driver.send_start(run, "alpha", A, B, deadline_s)
    await driver.send_start(run, "beta", B, A, deadline_s)


async def balanced(watcher: Watcher, before: Accounts) -> None:
    await until_balanced(watcher.bus, watcher.subjects, before, 10)


async def test_kv_that_never_comes_is_computed_again_and_the_output_is_the_same(
    driver: Driver, watcher: Watcher
) -> None:
    """Alpha's segment is lost on its way: beta waits for its deadline, then helps itself."""
    expected = await whole_output(driver)
    before = await watcher.accounts()
    run = driver.new_run(PROMPT, MAX_TOKENS)
    deadline_s = time.time() + 0.5
    await driver.send_side(run, "beta", B, A, 150, deadline_s)
    await driver.send_start(run, "beta", B, A, deadline_s)
    await driver.until(run, lambda r: r.finish_reason is not None)
    assert run.output == expected
    assert run.phases("beta")[-1] == "recomputed"
    await balanced(watcher, before)


@pytest.mark.parametrize("cut", [64, 150, P])
async def test_without_a_coordinator_alpha_ends_its_part_and_beta_helps_itself(
    driver: Driver, watcher: Watcher, cut: int
) -> None:
    """No HandoffStart ever comes: nothing can be sent. Alpha's blocks are freed by the lease."""
    expected = await whole_output(driver)
    before = await watcher.accounts()
    run = driver.new_run(PROMPT, MAX_TOKENS)
    deadline_s = time.time() + 1.0
    await driver.send_side(run, "alpha", A, B, cut, deadline_s)
    await driver.send_side(run, "beta", B, A, cut, deadline_s)
    await driver.until(run, lambda r: r.finish_reason is not None)
    assert run.output == expected
    await balanced(watcher, before)


async def test_a_cut_in_the_output_whose_tokens_never_come_is_reported_as_lost(
    driver: Driver, watcher: Watcher
) -> None:
    """Beta alone knows neither tokens nor KV: the gateway is told and places the rest anew."""
    before = await watcher.accounts()
    run = driver.new_run(PROMPT, MAX_TOKENS)
    deadline_s = time.time() + 0.5
    await driver.send_side(run, "beta", B, A, P + 5, deadline_s)
    await driver.until(run, lambda r: bool(r.failures))
    assert run.failures[0].code == "handoff_lost"
    assert run.tokens == {}
    await balanced(watcher, before)


async def test_tokens_without_kv_are_enough_to_go_on(driver: Driver, watcher: Watcher) -> None:
    """The continuation came, the KV did not: beta computes prompt and tokens itself."""
    expected = await whole_output(driver)
    before = await watcher.accounts()
    run = driver.new_run(PROMPT, MAX_TOKENS)
    deadline_s = time.time() + 1.5
    await driver.send_side(run, "alpha", A, B, P + 5, deadline_s)
    await driver.send_side(run, "beta", B, A, P + 5, deadline_s)
    await driver.until(run, lambda r: r.finish_reason is not None)
    assert run.output == expected
    assert run.phases("beta")[-1] == "recomputed"
    await balanced(watcher, before)


STATES: list[tuple[Side, str, int]] = [
    ("alpha", "accepted", 150),
    ("beta", "accepted", 150),
    ("beta", "held", 150),
    ("alpha", "first_chunk", 150),
    ("alpha", "sent_all", 150),
    ("beta", "complete", 150),
    ("beta", "adopted", 150),
    ("alpha", "released", 150),
    ("beta", "held", P + 10),
    ("alpha", "first_chunk", P + 10),
    ("alpha", "sent_all", P + 10),
    ("beta", "complete", P + 10),
    ("beta", "adopted", P + 10),
]


@pytest.mark.parametrize(("side", "phase", "cut"), STATES)
async def test_a_cancel_in_any_state_of_the_handoff_frees_both_sides(
    driver: Driver, watcher: Watcher, side: Side, phase: str, cut: int
) -> None:
    before = await watcher.accounts()
    run = driver.new_run(PROMPT, 400)
    await send_cut(driver, run, cut)
    await driver.until(run, lambda r: r.has(side, phase))
    await driver.cancel(run)
    await balanced(watcher, before)
    assert run.finish_reason is None
    assert not run.failures


async def test_a_cancel_that_overtakes_its_segments_leaves_nothing_behind(
    driver: Driver, watcher: Watcher
) -> None:
    before = await watcher.accounts()
    run = driver.new_run(PROMPT, 400)
    await driver.cancel(run)
    await send_cut(driver, run, 150)
    await driver.until(run, lambda r: r.has("alpha", "cancelled") and r.has("beta", "cancelled"))
    await balanced(watcher, before)
    assert run.tokens == {}
