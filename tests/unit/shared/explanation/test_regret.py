"""What another candidate would have given."""

import pytest

from shared.explanation.regret import regret_of
from shared.schemas.events import Recovery
from shared.schemas.place import Candidate
from tests.unit.shared.explanation.records import (
    P,
    cut_plan,
    cut_record,
    missed,
    plan,
    prediction,
    record,
)


def test_the_chosen_one_is_best_when_it_kept_its_word() -> None:
    found = regret_of(record())
    assert found is not None and found.best_is_chosen
    assert (found.ttft_s, found.tbt_s) == (0.0, 0.0)
    assert found.would_have_met


def test_another_instance_is_taken_at_its_word() -> None:
    found = regret_of(missed(ttft_s=2.0))
    assert found is not None
    assert found.best.alpha_id == "b" and not found.best_is_chosen
    assert found.ttft_s == pytest.approx(2.0 - 0.4)
    assert found.tbt_s == pytest.approx(0.05 - 0.05)
    assert found.would_have_met


def test_the_error_seen_is_charged_to_candidates_on_the_same_instance() -> None:
    # Given a cut on a and b that took 1.7 s longer than predicted, and "whole on a" promising 0.2 s
    cut = cut_plan(P - 1)
    whole = Candidate(alpha_id="a", prediction=prediction(0.2, 0.04))
    there = cut.model_copy(update={"candidates": [cut.candidates[0], whole]})
    # Then "whole on a" would have been late as well
    found = regret_of(cut_record(plan=there, ttft_s=2.0, slo_met=False))
    assert found is not None
    assert found.estimated_ttft_s == pytest.approx(0.2 + 1.7)
    assert not found.would_have_met


def test_decoding_is_charged_to_who_decodes() -> None:
    # Given a cut inside the output from a to b: a made the first token, b decoded slowly
    found = regret_of(cut_record(cut=P + 4, tbt_p99_s=0.9, slo_met=False, ttft_s=0.3))
    assert found is not None
    assert found.best.alpha_id == "c"  # decodes elsewhere: 30 ms as predicted
    assert found.estimated_tbt_s == pytest.approx(0.03)


def test_there_is_no_regret_without_predictions_tokens_or_choice() -> None:
    assert regret_of(record(plan=None)) is None
    assert regret_of(record(plan=plan(chosen=None))) is None
    assert regret_of(record(ttft_s=None)) is None
    lost = Recovery(epoch=1, at_s=0.0, code="draining", message="", position=P)
    assert regret_of(record(recoveries=[lost])) is None
