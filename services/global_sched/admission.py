"""Admission: refuse at once what no placement can serve in time, instead of letting it queue.

Pure. The least predicted TTFT, corrected by how first tokens came compared with their predictions,
is held against the request's objective. Traffic classes may be set to queue instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from services.global_sched.policy.views import Decision, RequestView, ttft_of
from services.global_sched.ttft_error import TtftError
from shared.schemas.place import AdmissionMode

NotAdmittedCode = Literal["slo", "overloaded"]


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """Times in seconds, counts in requests."""

    min_retry_after_s: float = 0.1
    max_queued: int = 1024
    """Requests without a first token that may wait at once; the next one is refused."""
    probe_every: int = 32
    """One of so many refusals is admitted: without first tokens the correction would stand still.
    """
    probe_every_unknown: int = 4
    """The same while no first token of a prediction of this size has been seen."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Admitted, or why not and the wait to tell the client."""

    admitted: bool
    ttft_s: float
    """As corrected; the prediction itself while nothing is known of its error."""
    code: NotAdmittedCode | None = None
    retry_after_s: float | None = None
    is_probe: bool = False


class Admission:
    """Judges placements. ``modes`` says per traffic class whether a late request may queue.

    A request is refused as ``slo`` only when even the optimistic reading of the prediction misses
    its objective on every placement, and as ``overloaded`` when the queue is full. As long as no
    first token was seen nobody knows how good predictions are, and everything else is admitted.
    """

    def __init__(
        self,
        settings: AdmissionSettings | None = None,
        modes: Mapping[str, AdmissionMode] | None = None,
        default: AdmissionMode = "refuse",
        error: TtftError | None = None,
    ) -> None:
        self.settings = settings or AdmissionSettings()
        self.error = error or TtftError()
        self._modes = dict(modes or {})
        self._default: AdmissionMode = default
        self._num_late = 0

    def set_modes(self, default: AdmissionMode, modes: Mapping[str, AdmissionMode]) -> None:
        """What becomes of late requests from now on."""
        self._default, self._modes = default, dict(modes)

    def mode_of(self, traffic_class: str) -> AdmissionMode:
        return self._modes.get(traffic_class, self._default)

    def judge(
        self,
        request: RequestView,
        decision: Decision,
        num_queued: int,
        max_queued: int = 0,
        is_overloaded: bool = False,
    ) -> Verdict:
        """``num_queued``: requests placed that have no first token yet; ``max_queued``: their
        bound, 0 for that of the settings. ``is_overloaded``: prompts miss their deadline on every
        instance. Late prompts yield, so predictions then stay near the objective however long the
        queue: they are taken at their word, without the benefit of the doubt."""
        predicted_s = decision.chosen.ttft_s
        if num_queued >= (max_queued or self.settings.max_queued):
            return self._refuse("overloaded", predicted_s, predicted_s)
        if predicted_s > request.slo_ttft_s:  # else the common case is over
            predicted_s = min([predicted_s, *map(ttft_of, decision.weighed)])
        known = self.error.optimistic(predicted_s)
        if known is None:
            return Verdict(True, predicted_s)
        ttft_s = (max(known.ratio, 1.0) if is_overloaded else known.ratio) * predicted_s
        excess_s = ttft_s - request.slo_ttft_s
        if excess_s <= 0.0 or self.mode_of(request.traffic_class) == "queue":
            return Verdict(True, ttft_s)
        if self._is_probe(known.is_near):
            return Verdict(True, ttft_s, is_probe=True)
        return self._refuse("slo", ttft_s, excess_s)

    def _is_probe(self, is_near: bool) -> bool:
        self._num_late += 1
        settings = self.settings
        every = settings.probe_every if is_near else settings.probe_every_unknown
        return self._num_late % every == 0

    def _refuse(self, code: NotAdmittedCode, ttft_s: float, wait_s: float) -> Verdict:
        return Verdict(False, ttft_s, code, max(wait_s, self.settings.min_retry_after_s))
