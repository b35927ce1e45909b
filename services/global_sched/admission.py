"""Admission: refuse at once what no placement can serve in time, instead of letting it queue.

Pure. The predicted TTFT of the best placement is compared with the request's SLO; the answer to a
refusal is how long until it would fit. Traffic classes may be set to queue instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.global_sched.policy.views import Decision, RequestView

Mode = Literal["refuse", "queue"]


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """Times in seconds, counts in requests."""

    tolerance: float = 1.25
    """Predicted TTFT may exceed the SLO by this factor: the prediction's own error."""
    min_retry_after_s: float = 0.1
    max_queued: int = 1024
    """Requests of queueing classes that may wait at once; the next one is refused."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Admitted, or the wait to tell the client."""

    admitted: bool
    predicted_ttft_s: float
    retry_after_s: float | None = None
    reason: str = ""


class Admission:
    """Judges placements. ``modes`` says per traffic class whether a late request may queue."""

    def __init__(
        self,
        settings: AdmissionSettings | None = None,
        modes: dict[str, Mode] | None = None,
        default: Mode = "refuse",
    ) -> None:
        self.settings = settings or AdmissionSettings()
        self._modes = dict(modes or {})
        self._default: Mode = default

    def judge(self, request: RequestView, decision: Decision, num_queued: int) -> Verdict:
        """``num_queued``: requests placed that have no first token yet."""
        ttft_s = decision.chosen.ttft_s
        excess_s = ttft_s - self.settings.tolerance * request.slo_ttft_s
        if num_queued >= self.settings.max_queued:
            return self._refuse(ttft_s, ttft_s, "queue full")
        if excess_s <= 0.0 or self._modes.get(request.traffic_class, self._default) == "queue":
            return Verdict(True, ttft_s)
        return self._refuse(ttft_s, excess_s, "predicted TTFT over its SLO")

    def _refuse(self, ttft_s: float, wait_s: float, reason: str) -> Verdict:
        retry_after_s = max(wait_s, self.settings.min_retry_after_s)
        return Verdict(False, ttft_s, retry_after_s, reason)
