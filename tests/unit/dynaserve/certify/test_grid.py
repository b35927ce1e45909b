from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynaserve.certify.grid import (
    ENDS_EARLY,
    cases_of,
    cuts,
    groups_of,
    last_cut,
    make_case,
    make_prompts,
    make_subject,
    shapes,
)
from dynaserve.certify.groups import GROUPS
from tests.unit.dynaserve.certify.samples import PROBE, case, subject


@given(st.integers(1, 400), st.integers(1, 60), st.sampled_from([16, 32, 128]))
def test_every_cut_leaves_work_to_both_parts(
    num_prompt: int, num_output: int, block_size: int
) -> None:
    found = cuts(num_prompt, num_output, block_size)
    assert all(1 <= cut <= num_prompt + num_output - 2 for cut in found)
    assert found == sorted(set(found))


def test_the_cuts_are_where_things_change() -> None:
    found = cuts(100, 40, 32)
    assert {1, 16, 31, 32, 96, 97, 99, 100, 101, 120, 128, 138} <= set(found)


@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_the_full_grid_has_at_least_300_cases_and_every_group(block_size: int) -> None:
    cases = 0
    used: set[str] = set()
    for index, shape in enumerate(shapes(block_size, quick=False)):
        for group in groups_of(index, quick=False):
            each = subject(shape.num_prompt, shape.max_tokens, group)
            # 16 tokens: as if every output ended early, which leaves the fewest places to cut.
            reference = replace(PROBE, token_ids=tuple(range(16)))
            cases += len(list(cases_of(each, reference, block_size, cases, quick=False)))
            used.add(group)
    assert cases >= 300
    assert used == set(GROUPS)


def test_the_quick_grid_has_every_group_and_about_40_cases() -> None:
    cases = 0
    used: set[str] = set()
    for index, shape in enumerate(shapes(32, quick=True)):
        for group in groups_of(index, quick=True):
            each = subject(shape.num_prompt, shape.max_tokens, group)
            found = list(cases_of(each, PROBE, 32, cases, quick=True))
            assert found[-1].cut == shape.num_prompt + 8 or not found[-1].hands_over
            cases += len(found)
            used.add(group)
    assert used == set(GROUPS)
    assert 30 <= cases <= 50


def test_transport_caching_and_load_take_all_eight_combinations() -> None:
    seen = {
        (c.transport, c.caching, c.mode) for c in (make_case(n, subject(), 1) for n in range(8))
    }
    assert len(seen) == 8


def test_every_transport_of_the_pool_meets_every_caching_and_load() -> None:
    joining = ("nccl", "shm", "tcp")
    cases = (make_case(n, subject(), 1, transports=joining) for n in range(24))
    assert len({(case.transport, case.caching, case.mode) for case in cases}) == 12


def test_an_output_that_ends_early_is_also_cut_behind_its_end() -> None:
    stopping = subject(40, 20, "stop_token_ids")
    found = list(cases_of(stopping, PROBE, 32, 0, quick=False))
    assert [c.hands_over for c in found] == [True] * (len(found) - 1) + [False]
    assert found[-1].cut == 50 <= last_cut(stopping)
    assert found[-1].group == ENDS_EARLY
    assert found[-2].cut == 48


@pytest.mark.parametrize(
    ("cut", "place"), [(1, "prompt"), (39, "P-1"), (40, "P"), (41, "P+1"), (45, "output")]
)
def test_a_cut_is_named_after_its_place(cut: int, place: str) -> None:
    assert case(cut=cut).place == place


def test_the_same_seed_gives_the_same_prompts() -> None:
    wanted = shapes(32, quick=False)
    prompts = make_prompts(wanted, range(50), seed=3)
    assert prompts == make_prompts(wanted, range(50), seed=3)
    assert prompts != make_prompts(wanted, range(50), seed=4)
    assert [len(p) for p in prompts] == [shape.num_prompt for shape in wanted]


def test_a_group_that_does_not_fit_the_probe_makes_no_request() -> None:
    probing = subject(group="probe")
    made = make_subject("greedy", probing, PROBE, 1)
    assert made is not None
    assert (made.name, made.group, made.sampling["ignore_eos"]) == (
        "p0.probe.greedy",
        "greedy",
        True,
    )
    assert make_subject("stop_string", probing, replace(PROBE, token_texts=()), 1) is None
