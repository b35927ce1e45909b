"""Admission: refuse what would be late, say when to come back, bound every queue."""

from services.global_sched.admission import Admission, AdmissionSettings
from services.global_sched.policy.views import Decision, LengthQuantiles, Prediction, RequestView


def asked(traffic_class: str = "default") -> RequestView:
    length = LengthQuantiles(1, 1, 1, 1)
    return RequestView("r", 0.0, 100, 10, length, 1.0, 0.1, traffic_class)


def placed(ttft_s: float) -> Decision:
    prediction = Prediction(ttft_s, 0.02, ttft_s)
    return Decision("unsplit", "i0", None, None, prediction, prediction, None, (), "")


def test_a_placement_in_time_is_admitted() -> None:
    assert Admission().judge(asked(), placed(0.9), 0).admitted


def test_a_late_placement_is_refused_with_the_wait_until_it_would_fit() -> None:
    verdict = Admission().judge(asked(), placed(4.25), 0)
    assert (verdict.admitted, verdict.retry_after_s) == (False, 3.0)
    assert verdict.predicted_ttft_s == 4.25


def test_a_queueing_class_waits_but_its_queue_is_bounded() -> None:
    admission = Admission(AdmissionSettings(max_queued=2), {"batch": "queue"})
    assert admission.judge(asked("batch"), placed(9.0), 1).admitted
    verdict = admission.judge(asked("batch"), placed(9.0), 2)
    assert (verdict.admitted, verdict.reason) == (False, "queue full")
