"""An explanation in the terminal."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dynaserve.explain.render import render
from dynaserve.explain.waterfall import MIN_BAR, waterfall
from shared.explanation import Span, explain
from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffRecord
from shared.schemas.place import Candidate
from shared.schemas.request import Slo
from tests.unit.shared.explanation.records import (
    P,
    cut_plan,
    cut_record,
    handoff,
    missed,
    prediction,
    record,
    timing,
)


def screen(of: RequestRecord, handoffs: tuple[HandoffRecord, ...] = (), width: int = 110) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(of, [*handoffs], explain(of, handoffs), width))
    return console.export_text()


def test_a_cut_request_shows_its_plan_its_waterfall_and_its_candidates() -> None:
    shown = screen(cut_record(cut=P + 4, ttft_s=0.1), (handoff(),))
    assert "✓ Met both objectives" in shown
    assert f"a up to token {P + 4}, then b" in shown
    assert "adopted: 0.0 MB by shm in 80 ms, 50 ms exposed" in shown
    for line in ("placement", "alpha prompt a", "transfer, hidden", "beta decoding b"):
        assert line in shown
    assert "↑ first token 100 ms" in shown
    assert "100.0% of TTFT is accounted for" in shown
    assert "● a → b" in shown and "chosen" in shown
    assert "No regret" in shown


def test_a_late_request_says_why_and_what_would_have_been_better() -> None:
    late = missed(
        slo=Slo(ttft_s=0.5, tbt_s=0.1),
        ttft_s=1.2,
        segments=[timing("a", "whole", 0.01, 0.91, 2.0)],
    )
    shown = screen(late)
    assert "▲ Missed TTFT (1.20 s against 500 ms): waited 900 ms in the queue of a." in shown
    assert "also: a took 290 ms to compute 800 tokens of the prompt" in shown
    assert "1.20 s ▲" in shown
    assert "Regret: b, uncut would have given TTFT 400 ms" in shown
    assert "taken at their word" in " ".join(shown.split())


def test_a_forced_cut_tells_what_the_policy_would_have_done() -> None:
    own = Candidate(alpha_id="a", prediction=prediction())
    others = [own, Candidate(alpha_id="b", prediction=prediction(cost=2.0))]
    forced = cut_plan(P).model_copy(
        update={"chosen": None, "unforced": own, "candidates": others, "reason": "forced"}
    )
    shown = screen(cut_record(cut=P, plan=forced), (handoff(),))
    (row,) = (line for line in shown.splitlines() if "the policy's own" in line)
    assert row.split()[:2] == ["a", "uncut"]
    assert "The policy's own choice was a, uncut: TTFT 300 ms" in " ".join(shown.split())
    assert "chosen" not in shown


def test_a_request_that_was_refused_shows_without_a_plan() -> None:
    refused = missed(
        outcome="refused", error="full", plan=None, segments=[], ttft_s=None, tbt_p99_s=None
    )
    shown = screen(refused)
    assert "▲ Refused after 1.30 s: full." in shown
    assert "not placed" in shown
    assert "Candidates" not in shown


def test_nothing_told_draws_no_waterfall() -> None:
    assert "No part of it" in waterfall([], None, 80)[0].plain


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=8),
    st.floats(0, 5),
    st.integers(30, 200),
)
def test_every_bar_is_seen_and_stays_on_its_axis(
    times: list[tuple[float, float]], ttft_s: float, width: int
) -> None:
    spans = [
        Span(kind="decode", lane="whole", instance_id="a", start_s=s, end_s=s + d + 1e-3)
        for s, d in times
    ]
    lines = waterfall(spans, ttft_s, width)
    assert len(lines) == len(spans) + 1
    lengths = {len(line.plain) for line in lines[:-1]}
    assert len(lengths) == 1
    assert lengths.pop() <= max(width, MIN_BAR + 30)
    assert all(line.plain.count("█") >= 1 for line in lines[:-1])


def test_the_record_of_an_uncut_request_names_its_instance() -> None:
    assert "whole on a" in screen(record())
