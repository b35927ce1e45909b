"""The sentence that names why a request missed."""

import pytest

from shared.explanation import explain
from shared.explanation.wording import say_s
from shared.schemas.events import Emitter, Recovery, StepsSeen
from shared.schemas.request import Slo
from tests.unit.shared.explanation.records import AT_S, P, cut_record, missed, record, timing

TIGHT = Slo(ttft_s=0.2, tbt_s=0.1)


def steps(median_s: float, longest_s: float, phase: str = "decode") -> StepsSeen:
    return StepsSeen.model_validate(
        {
            "instance_id": "a",
            "phase": phase,
            "num_samples": 9,
            "median_step_s": median_s,
            "longest_step_s": longest_s,
            "most_decodes": 12,
            "most_waiting": 0,
        }
    )


def late(instance_id: str = "a", **fields: float) -> Emitter:
    whole = {
        "instance_id": instance_id,
        "from_position": P,
        "num_tokens": 26,
        "longest_gap_s": 0.19,
        "num_late_gaps": 20,
        "late_s": 1.6,
    }
    return Emitter.model_validate(whole | fields)


def recovery(code: str = "instance_lost", at_s: float = 0.6, position: int = P) -> Recovery:
    return Recovery(
        epoch=1, at_s=AT_S + at_s, code=code, message="m", instance_id="b", position=position
    )


def test_a_request_in_time_has_no_cause() -> None:
    found = explain(record())
    assert found.causes == []
    assert found.verdict == "Met both objectives: TTFT 300 ms of 1.00 s, P99 gap 50 ms of 100 ms."


def test_a_long_queue_is_named() -> None:
    found = explain(missed(ttft_s=1.2, segments=[timing("a", "whole", 0.01, 0.91, 2.0)]))
    assert found.verdict == (
        "Missed TTFT (1.20 s against 1.00 s): waited 900 ms in the queue of a."
    )


def test_waiting_for_a_placement_is_named() -> None:
    segments = [timing("a", "whole", 0.4, 0.41, 1.0)]
    found = explain(missed(slo=TIGHT, place_s=0.4, ttft_s=0.5, segments=segments))
    assert found.causes[0].sentence == "no placement for 400 ms"


def test_a_long_prompt_is_named_with_the_decodes_beside_it() -> None:
    found = explain(missed(slo=TIGHT, steps=[steps(0.02, 0.03, "prefill")]))
    assert found.causes[0].sentence == (
        "a took 250 ms to compute 800 tokens of the prompt beside up to 12 decodes"
    )


def test_exposed_transfer_before_the_first_token_is_named() -> None:
    found = explain(cut_record(kv_wait_s=0.5, ttft_s=0.8, slo=TIGHT, slo_met=False))
    assert found.causes[0].kind == "transfer"
    assert found.causes[0].sentence == "transfer exposed 500 ms before b"


def test_a_loss_before_the_first_token_outweighs_what_came_after_it() -> None:
    found = explain(
        missed(
            ttft_s=1.2,
            epochs=2,
            segments=[timing("a", "whole", 0.7, 0.71, 1.5, epoch=2)],
            recoveries=[recovery()],
        )
    )
    assert found.causes[0].sentence == "recovered after b was lost"
    assert found.causes[0].seconds == pytest.approx(0.6)


def test_long_steps_are_named_with_the_objective() -> None:
    found = explain(missed(tbt_p99_s=0.19, emitters=[late()], steps=[steps(0.18, 0.2)]))
    assert found.verdict == (
        "Missed P99 gap (190 ms against 100 ms): a ran steps of 180 ms against an SLO of 100 ms "
        "while it decoded (20 of 26 tokens late)."
    )


def test_a_few_long_steps_among_short_ones_are_named_as_such() -> None:
    found = explain(missed(tbt_p99_s=0.19, emitters=[late()], steps=[steps(0.02, 0.2)]))
    assert "steps of up to 200 ms" in found.causes[0].sentence


def test_steps_that_are_long_and_sometimes_very_long_are_told_both_ways() -> None:
    found = explain(missed(tbt_p99_s=1.1, emitters=[late()], steps=[steps(0.15, 1.1)]))
    assert "ran steps of 150 ms, up to 1.10 s, against an SLO of 100 ms" in found.verdict


def test_late_tokens_of_fast_steps_are_not_blamed_on_the_steps() -> None:
    found = explain(missed(tbt_p99_s=0.19, emitters=[late()], steps=[steps(0.02, 0.03)]))
    assert found.causes[0].kind == "stall"
    assert "though its steps took 20 ms" in found.causes[0].sentence


def test_a_transfer_exposed_at_the_cut_is_named() -> None:
    emitters = [
        Emitter(instance_id="a", from_position=P, num_tokens=5),
        Emitter(instance_id="b", from_position=P + 5, num_tokens=21, handover_gap_s=0.15),
    ]
    found = explain(
        cut_record(cut=P + 4, kv_wait_s=0.12, tbt_p99_s=0.15, slo_met=False, emitters=emitters)
    )
    assert found.causes[0].sentence == "transfer exposed 120 ms at the cut, before b went on"


def test_a_slow_start_behind_the_cut_is_not_blamed_on_the_transfer() -> None:
    emitters = [Emitter(instance_id="b", from_position=P + 5, num_tokens=1, handover_gap_s=0.4)]
    found = explain(
        cut_record(cut=P + 4, kv_wait_s=0.01, tbt_p99_s=0.4, slo_met=False, emitters=emitters)
    )
    assert found.causes[0].sentence == "b took 400 ms to go on behind the cut, 10 ms of it transfer"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("instance_lost", "recovered after b was lost, a gap of 2.00 s"),
        ("handoff_lost", "recovered after the handoff to b was lost, a gap of 2.00 s"),
        ("engine_failed", "recovered after b failed (engine failed), a gap of 2.00 s"),
    ],
)
def test_a_loss_in_mid_stream_is_named(code: str, said: str) -> None:
    emitters = [
        Emitter(instance_id="b", from_position=P, num_tokens=5),
        Emitter(instance_id="a", from_position=P + 5, num_tokens=21, handover_gap_s=2.0),
    ]
    found = explain(
        missed(
            tbt_p99_s=2.0,
            epochs=2,
            emitters=emitters,
            recoveries=[recovery(code, position=P + 5)],
        )
    )
    assert found.causes[0].sentence == said


def test_the_weightiest_cause_comes_first() -> None:
    emitters = [
        late(late_s=0.2),
        Emitter(instance_id="b", from_position=P + 26, num_tokens=1, handover_gap_s=5.0),
    ]
    found = explain(missed(tbt_p99_s=1.0, emitters=emitters))
    assert [cause.instance_id for cause in found.causes] == ["b", "a"]


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        ("refused", "Refused after 1.30 s: too much."),
        ("error", "Failed after 1.30 s: too much."),
        ("abort", "The client left after 1.30 s with 26 tokens."),
    ],
)
def test_requests_that_did_not_end_well_say_how(outcome: str, verdict: str) -> None:
    assert explain(missed(outcome=outcome, error="too much")).verdict == verdict


def test_a_request_that_ended_without_a_token_says_so() -> None:
    assert explain(missed(outcome="stop", ttft_s=None)).verdict == "Ended without a token."


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0000123, "0.01 ms"),
        (0.0012, "1.2 ms"),
        (0.018, "18 ms"),
        (0.18, "180 ms"),
        (2.3, "2.30 s"),
        (123.4, "123 s"),
        (0.0, "0.00 ms"),
    ],
)
def test_durations_are_told_with_sensible_digits(seconds: float, said: str) -> None:
    assert say_s(seconds) == said
