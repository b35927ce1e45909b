"""Admission: refuse what would be late, say when to come back, bound queues, never on a hunch."""

from hypothesis import given
from hypothesis import strategies as st

from services.global_sched.admission import Admission, AdmissionSettings
from services.global_sched.policy.views import (
    Decision,
    LengthQuantiles,
    Listed,
    Prediction,
    RequestView,
)

NEVER_PROBE = AdmissionSettings(probe_every=1 << 30, probe_every_unknown=1 << 30)


def asked(traffic_class: str = "default") -> RequestView:
    length = LengthQuantiles(1, 1, 1, 1)
    return RequestView("r", 0.0, 100, 10, length, 1.0, 0.1, traffic_class)


def placed(ttft_s: float, *others_s: float) -> Decision:
    prediction = Prediction(ttft_s, 0.02, ttft_s)
    weighed = tuple(
        (f"i{n}", None, None, each, 0.02, each) for n, each in enumerate((ttft_s, *others_s))
    )
    return Decision("unsplit", "i0", None, None, prediction, prediction, Listed(weighed), "")


def learned(
    ratio: float, predicted_s: float = 2.0, count: int = 20, **changes: object
) -> Admission:
    """Admission that saw first tokens come at ``ratio`` times their prediction."""
    admission = Admission(NEVER_PROBE, **changes)  # type: ignore[arg-type]
    for _ in range(count):
        admission.error.observe(predicted_s, ratio * predicted_s)
    return admission


def test_a_placement_in_time_is_admitted() -> None:
    assert learned(1.0).judge(asked(), placed(0.9), 0).admitted


def test_a_late_placement_is_refused_with_the_wait_until_it_would_fit() -> None:
    verdict = learned(1.0, 4.0).judge(asked(), placed(4.0), 0)
    assert (verdict.admitted, verdict.code) == (False, "slo")
    assert (verdict.ttft_s, verdict.retry_after_s) == (4.0, 3.0)


def test_a_late_choice_is_admitted_while_another_placement_would_be_in_time() -> None:
    assert learned(1.0).judge(asked(), placed(4.0, 0.9), 0).admitted


def test_while_no_first_token_was_seen_nothing_is_refused_but_by_the_bound() -> None:
    admission = Admission(AdmissionSettings(max_queued=3))
    assert admission.judge(asked(), placed(1e6), 2).admitted
    verdict = admission.judge(asked(), placed(1e6), 3)
    assert (verdict.admitted, verdict.code) == (False, "overloaded")


def test_a_model_that_predicts_far_too_long_refuses_nobody_who_would_be_in_time() -> None:
    assert learned(0.1, 8.0).judge(asked(), placed(8.0), 0).admitted
    assert not learned(0.1, 20.0).judge(asked(), placed(20.0), 0).admitted


def test_a_model_that_predicts_far_too_short_refuses_nevertheless() -> None:
    verdict = learned(100.0, 0.05).judge(asked(), placed(0.05), 0)
    assert (verdict.code, round(verdict.ttft_s, 3)) == ("slo", 5.0)


def test_what_is_added_to_short_prompts_is_not_held_against_long_predictions() -> None:
    admission = learned(10.0, 0.01)
    assert admission.judge(asked(), placed(0.5), 0).admitted


@given(st.lists(st.floats(1.0, 50.0), min_size=8, max_size=60), st.floats(1.01, 30.0))
def test_only_what_nearly_every_request_like_it_would_miss_is_refused(
    ratios: list[float], predicted_s: float
) -> None:
    admission = Admission(NEVER_PROBE)
    for ratio in ratios:
        admission.error.observe(predicted_s, ratio * predicted_s)
    verdict = admission.judge(asked(), placed(predicted_s), 0)
    misses = sum(ratio * predicted_s > 1.0 for ratio in ratios)
    assert verdict.admitted or misses >= 0.95 * len(ratios)


def test_a_queueing_class_waits_but_its_queue_is_bounded() -> None:
    admission = learned(1.0, 9.0, modes={"batch": "queue"})
    assert admission.judge(asked("batch"), placed(9.0), 1, 2).admitted
    assert not admission.judge(asked(), placed(9.0), 1, 2).admitted
    verdict = admission.judge(asked("batch"), placed(9.0), 2, 2)
    assert (verdict.admitted, verdict.code) == (False, "overloaded")


def test_what_becomes_of_late_requests_can_be_switched() -> None:
    admission = learned(1.0, 9.0)
    admission.set_modes("queue", {"chat": "refuse"})
    assert admission.judge(asked(), placed(9.0), 0).admitted
    assert not admission.judge(asked("chat"), placed(9.0), 0).admitted


def test_some_late_requests_are_let_in_so_that_a_pool_that_recovered_is_noticed() -> None:
    admission = Admission(AdmissionSettings(probe_every=10))
    for _ in range(20):
        admission.error.observe(4.0, 4.0)
    verdicts = [admission.judge(asked(), placed(4.0), 0) for _ in range(100)]
    probes = [verdict for verdict in verdicts if verdict.admitted]
    assert len(probes) == 10 and all(verdict.is_probe for verdict in probes)
    for _ in range(64):
        admission.error.observe(4.0, 0.4)
    assert admission.judge(asked(), placed(4.0), 0).admitted


def test_after_the_policy_changed_its_predictions_are_learned_anew() -> None:
    admission = learned(1.0, 4.0)
    admission.error.reset()
    assert admission.judge(asked(), placed(4.0), 0).admitted


def test_in_overload_a_prediction_is_taken_at_its_word() -> None:
    admission = learned(0.5, 1.2)
    assert admission.judge(asked(), placed(1.2), 0).admitted
    verdicts = [admission.judge(asked(), placed(1.2), 0, is_overloaded=True) for _ in range(3)]
    assert [verdict.code for verdict in verdicts] == ["slo"] * 3
