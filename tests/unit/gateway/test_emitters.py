"""Which instance made which tokens."""

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.emitters import emitters
from shared.schemas.place import Plan

P = 10


def plan(alpha: str = "a", beta: str | None = None, cut: int | None = None) -> Plan:
    return Plan(
        request_id="r",
        epoch=1,
        scheduler_id="s",
        policy="p",
        alpha_id=alpha,
        beta_id=beta,
        cut=cut,
        reason="",
    )


def test_an_uncut_request_has_one_emitter_with_its_late_gaps() -> None:
    (only,) = emitters([(P, plan())], P, [0.1, 0.5, 0.3], tbt_s=0.2)
    assert (only.instance_id, only.from_position, only.num_tokens) == ("a", P, 4)
    assert (only.num_late_gaps, only.longest_gap_s, only.longest_gap_position) == (2, 0.5, P + 2)
    assert abs(only.late_s - 0.4) < 1e-9
    assert only.handover_gap_s is None


def test_the_gap_at_the_cut_belongs_to_the_handover_alone() -> None:
    gaps_s = [0.1, 0.9, 0.1]  # before positions 11, 12, 13; alpha emits 10 and 11
    first, second = emitters([(P, plan("a", "b", P + 1))], P, gaps_s, tbt_s=0.2)
    assert (first.instance_id, first.num_tokens, first.num_late_gaps) == ("a", 2, 0)
    assert (second.instance_id, second.from_position, second.num_tokens) == ("b", P + 2, 2)
    assert second.handover_gap_s == 0.9
    assert second.num_late_gaps == 0


def test_a_cut_inside_the_prompt_leaves_all_tokens_to_beta() -> None:
    (only,) = emitters([(P, plan("a", "b", 3))], P, [0.1], tbt_s=0.2)
    assert (only.instance_id, only.num_tokens, only.handover_gap_s) == ("b", 2, None)


def test_a_recovery_begins_a_new_run() -> None:
    spells = [(P, plan("a")), (P + 2, plan("b"))]
    first, second = emitters(spells, P, [0.1, 2.0, 0.1], tbt_s=0.2)
    assert (first.instance_id, first.num_tokens) == ("a", 2)
    assert (second.instance_id, second.num_tokens, second.handover_gap_s) == ("b", 2, 2.0)


def test_tokens_without_a_plan_have_no_emitter() -> None:
    assert emitters([], P, [0.1], tbt_s=0.2) == []


@given(
    st.lists(st.floats(0, 2), max_size=30),
    st.integers(1, 50),
    st.lists(st.integers(0, 30), max_size=3).map(sorted),
)
def test_every_token_is_counted_once_and_in_order(
    gaps_s: list[float], cut: int, recoveries: list[int]
) -> None:
    spells = [(P, plan("a", "b", cut))]
    spells += [(P + min(at, len(gaps_s) + 1), plan("c")) for at in recoveries]
    found = emitters(spells, P, gaps_s, tbt_s=0.5)
    position = P
    for one in found:
        assert one.from_position == position
        position += one.num_tokens
    assert position == P + len(gaps_s) + 1
    handovers = [one.handover_gap_s for one in found if one.handover_gap_s is not None]
    late = sum(one.num_late_gaps for one in found) + sum(gap > 0.5 for gap in handovers)
    assert late == sum(gap > 0.5 for gap in gaps_s)
