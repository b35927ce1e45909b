"""The `dynaserve` policy: gather decodes as the SLO rewards, cut where the handoff is hidden."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

from services.global_sched.policy.survey import CostSettings, Survey
from services.global_sched.policy.views import (
    Decision,
    NoInstance,
    PoolView,
    RequestView,
    Weighed,
    prediction_of,
)


@dataclass(frozen=True, slots=True)
class DynaServeSettings(CostSettings):
    """Weights of the cost, and the guard's shares."""

    least_gain: float = 0.05
    """A cut must beat the best uncut placement by this share of its cost."""
    least_gain_all_decode: float = 0.5
    """The same when every instance decodes: a cut then saves no base cost, it only adds work."""
    least_gain_s: float = 2e-3
    control_share: float = 0.01
    """Of the requests that would be cut. They wait for a holder: more, and P99 TTFT is theirs."""


class DynaServe:
    """Gather decodes on the fewest instances that can hold them; let TTFT pay for the handoff.

    1.  The pool-level target (`decode_target`) names the decode holders of the moment.
    2.  Candidates: the request uncut on any instance; for the most promising pairs (alpha:
        shortest prompt queue; beta: a holder) a cut at P-1, where alpha computes the prompt and
        beta makes the first token itself, so that the handoff is paid from TTFT's slack; a cut
        inside the prompt where alpha's part arrives just as beta's queue is done; a cut at P; and
        a cut past P when the holder is full now but alpha has room to stream first.
    3.  Cost, in seconds: predicted TTFT, plus what the decode adds on its instance: its step time,
        the excess over the TBT SLO, missing KV, and, where nothing should decode, the base cost
        of the steps that would now have to be short.
    4.  The cheapest wins. A cut must beat the best uncut candidate by more than the error band; a
        small control group (by hash of the request id) and classes in which cuts lost against it
        stay uncut.
    """

    def __init__(self, settings: DynaServeSettings | None = None) -> None:
        self.settings = settings or DynaServeSettings()

    def place(self, request: RequestView, pool: PoolView) -> Decision:
        if not pool.instances:
            raise NoInstance
        survey = Survey(request, pool, self.settings)
        uncut = survey.best_uncut()
        cut = survey.best_cut(uncut[5])
        control = self._is_control(request.request_id)
        is_cut, reason = False, "uncut is cheapest"
        if cut is not None:
            is_cut, reason = self._judge_cut(cut, uncut, survey, control)
        chosen = cut if is_cut and cut is not None else uncut
        alpha_id, beta_id, position = chosen[:3]
        unsplit = prediction_of(uncut)
        return Decision(
            "cut" if is_cut else "unsplit",
            alpha_id,
            beta_id,
            position,
            prediction_of(chosen) if is_cut else unsplit,
            unsplit,
            survey,
            reason,
            control,
        )

    def _judge_cut(
        self, cut: Weighed, uncut: Weighed, survey: Survey, control: bool
    ) -> tuple[bool, str]:
        """Whether a cut that costs less is made, and why or why not."""
        turn = survey.turn
        if uncut[5] - cut[5] <= self._least_gain_s(uncut, survey.all_hold):
            return False, "a cut would gain less than the predictor's error"
        if turn.request.traffic_class in turn.pool.unsplit_classes:
            return False, "guard: cuts lost against the control group in this class"
        if control:
            return False, "control group"
        return True, "cut is cheapest"

    def _least_gain_s(self, uncut: Weighed, all_hold: bool) -> float:
        settings = self.settings
        share = settings.least_gain_all_decode if all_hold else settings.least_gain
        return settings.least_gain_s + share * uncut[5]

    def _is_control(self, request_id: str) -> bool:
        return crc32(request_id.encode()) % 10_000 < 10_000 * self.settings.control_share
