"""The `dynaserve` policy: gather decodes as the SLO rewards, cut where the handoff is hidden."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import NamedTuple
from zlib import crc32

from services.global_sched.policy.decode_target import TargetSettings, decode_holders
from services.global_sched.policy.loads import Load, survey
from services.global_sched.policy.predict import handoff_s
from services.global_sched.policy.views import (
    Candidate,
    Decision,
    NoInstance,
    PoolView,
    Prediction,
    RequestView,
)

BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class DynaServeSettings:
    """Weights of the cost, in seconds of TTFT, and the guard's shares."""

    target: TargetSettings = field(default_factory=TargetSettings)
    shortlist: int = 3
    """Instances of each kind that are paired."""
    tbt_weight_s: float = 2.0
    """Cost of a decode step planned 100 % over the SLO."""
    miss_weight_s: float = 4.0
    """Cost of a gap over the TBT SLO at a cut where tokens already flow, times its probability."""
    kv_weight_s: float = 10.0
    """Cost of lacking a whole instance's KV."""
    spread_weight: float = 1.0
    """Cost of a millisecond of decode load already there, in ms: holders fill evenly."""
    convert_weight: float = 5.0
    """Cost of making a further instance decode, as a share of the base cost it then pays."""
    least_gain: float = 0.05
    """A cut must beat the best uncut placement by this share of its cost."""
    least_gain_all_decode: float = 0.5
    """The same when every instance decodes: a cut then saves no base cost, it only adds work."""
    least_gain_s: float = 2e-3
    control_share: float = 0.015


class Turn(NamedTuple):
    """What one placement goes by."""

    request: RequestView
    pool: PoolView
    holders: frozenset[str]
    all_hold: bool


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
        loads = survey(request, pool)
        if not loads:
            raise NoInstance
        holders = decode_holders(loads, request, self.settings.target)
        turn = Turn(request, pool, holders, len(holders) == len(loads))
        uncut = [self._uncut(load, turn) for load in loads]
        cuts = list(self._cuts(loads, turn)) if len(loads) > 1 else []
        return self._choose(turn, uncut, cuts)

    # ---- candidates ----------------------------------------------------------------------

    def _uncut(self, load: Load, turn: Turn) -> Candidate:
        ttft_s = 1e-3 * load.prefill_ms(load.uncached)
        burden_s = self._burden_s(load, turn, load.uncached + turn.request.length.mean)
        tbt_s = 1e-3 * load.step_ms
        prediction = Prediction(ttft_s, tbt_s, ttft_s + burden_s)
        return Candidate(load.view.instance_id, None, None, prediction)

    def _burden_s(self, load: Load, turn: Turn, kv_tokens: float) -> float:
        """What decoding here costs the pool, in seconds of TTFT."""
        settings, request = self.settings, turn.request
        slo_ms = 1e3 * request.slo_tbt_s
        over = max(0.0, load.step_ms / slo_ms - settings.target.fill)
        short = max(0.0, kv_tokens - load.kv_free_tokens) / load.view.kv_capacity_tokens
        burden_s = settings.tbt_weight_s * over + settings.kv_weight_s * short
        if load.view.instance_id in turn.holders:
            burden_s += 1e-3 * settings.spread_weight * (load.decode_ms + load.own_decode_ms)
        else:
            base_s = 1e-3 * load.view.model.base_ms * request.length.mean
            burden_s += settings.convert_weight * base_s
        return burden_s

    def _cuts(self, loads: list[Load], turn: Turn) -> Iterator[Candidate]:
        # Where every instance decodes a cut hardly ever pays: few pairs say so.
        number = 2 if turn.all_hold else self.settings.shortlist
        prompt = turn.request.num_prompt_tokens
        alphas = nsmallest(number, loads, key=lambda load: load.prefill_ms(load.uncached))
        holders = [load for load in loads if load.view.instance_id in turn.holders]
        betas = nsmallest(
            number, holders, key=lambda load: (load.kv_free_tokens < prompt, load.decode_ms)
        )
        for alpha in alphas:
            for beta in betas:
                if alpha.view.instance_id != beta.view.instance_id:
                    for cut in self._cut_points(alpha, beta, turn.request):
                        yield self._cut(alpha, beta, cut, turn)

    def _cut_points(self, alpha: Load, beta: Load, request: RequestView) -> Iterator[int]:
        """Cuts worth weighing for this pair, each legal."""
        prompt, last = request.num_prompt_tokens, request.max_cut
        if 1 <= prompt - 1 <= last:
            yield prompt - 1
        arrives_together = int((beta.all_wait_ms - alpha.wait_ms) * alpha.tokens_per_ms)
        cached = prompt - alpha.uncached
        inside = (cached + arrives_together) // BLOCK_TOKENS * BLOCK_TOKENS
        if max(cached, 1) < inside < prompt - 1 and inside <= last:
            yield inside
        if 1 <= prompt <= last:
            yield prompt
        streamed = prompt + int(0.5 * request.length.p50)
        if beta.kv_free_tokens < prompt and prompt < streamed <= last:
            yield streamed

    def _cut(self, alpha: Load, beta: Load, cut: int, turn: Turn) -> Candidate:
        request, pool = turn.request, turn.pool
        prompt = request.num_prompt_tokens
        moved_s = handoff_s(alpha.view, cut, pool)
        tail = max(prompt - cut, 0)
        own = max(min(cut, prompt) - (prompt - alpha.uncached), 1)
        alpha_s = 1e-3 * alpha.prefill_ms(own)
        burden_s = self._burden_s(beta, turn, cut + request.length.mean)
        tbt_s = 1e-3 * beta.step_ms
        if tail:
            ttft_s = self._tail_done_s(alpha_s + moved_s, tail, beta, request)
        else:
            ttft_s = alpha_s
            step_s = self._step_s(beta, request)
            late = (moved_s + step_s + tbt_s - request.slo_tbt_s) / step_s
            late *= _share_hurt_by_one_gap(request)
            tbt_s = max(tbt_s, moved_s + 0.5 * step_s + tbt_s)
            burden_s += self.settings.miss_weight_s * min(max(late, 0.0), 1.0)
        if cut > prompt:
            share = min((cut - prompt) / max(request.length.mean, 1.0), 1.0)
            burden_s += share * self._burden_s(alpha, turn, cut)
        prediction = Prediction(ttft_s, tbt_s, ttft_s + burden_s)
        return Candidate(alpha.view.instance_id, beta.view.instance_id, cut, prediction)

    def _step_s(self, beta: Load, request: RequestView) -> float:
        """The step in progress when the handoff arrives: as long as the SLO where prompts queue."""
        idle = beta.view.num_decodes == 0 and beta.view.outstanding_prefill_tokens == 0
        return 1e-3 * beta.step_ms if idle else request.slo_tbt_s

    def _tail_done_s(self, arrives_s: float, tail: int, beta: Load, request: RequestView) -> float:
        """When beta has computed its part of the prompt: it meets a step in progress first."""
        busy = beta.all_wait_ms > 0.0
        step_s = request.slo_tbt_s if busy else 1e-3 * beta.step_ms
        if tail <= BLOCK_TOKENS:
            return arrives_s + (1.5 if beta.view.num_decodes else 1.0) * step_s
        return (
            max(arrives_s + 0.5 * step_s, 1e-3 * beta.all_wait_ms)
            + 1e-3 * tail / beta.tokens_per_ms
        )

    # ---- choice --------------------------------------------------------------------------

    def _choose(self, turn: Turn, uncut: list[Candidate], cuts: list[Candidate]) -> Decision:
        request = turn.request
        best_uncut = min(uncut, key=_cost)
        best_cut = min(cuts, key=_cost, default=None)
        at_prompt = [c for c in cuts if c.cut == request.num_prompt_tokens]
        disaggregated = min(at_prompt, key=_cost, default=None)
        control = self._is_control(request.request_id)
        chosen, reason = best_uncut, "uncut is cheapest"
        if best_cut is not None and self._pays(best_cut, best_uncut, turn):
            if request.traffic_class in turn.pool.unsplit_classes:
                reason = "guard: cuts lost against the control group in this class"
            elif control:
                reason = "control group"
            else:
                chosen, reason = best_cut, "cut is cheapest"
        elif best_cut is not None and _cost(best_cut) < _cost(best_uncut):
            reason = "a cut would gain less than the predictor's error"
        return Decision(
            "unsplit" if chosen.beta_id is None else "cut",
            chosen.alpha_id,
            chosen.beta_id,
            chosen.cut,
            chosen.prediction,
            best_uncut.prediction,
            disaggregated.prediction if disaggregated else None,
            (*uncut, *cuts),
            reason,
            control,
            tuple(sorted(turn.holders)),
        )

    def _pays(self, cut: Candidate, uncut: Candidate, turn: Turn) -> bool:
        settings = self.settings
        share = settings.least_gain_all_decode if turn.all_hold else settings.least_gain
        return _cost(uncut) - _cost(cut) > settings.least_gain_s + share * _cost(uncut)

    def _is_control(self, request_id: str) -> bool:
        return crc32(request_id.encode()) % 10_000 < 10_000 * self.settings.control_share


def _share_hurt_by_one_gap(request: RequestView) -> float:
    """Share of such requests that are too short for one long gap to fall outside their P99."""
    if request.length.p50 < 100.0:
        return 1.0
    return 0.5 if request.length.p10 < 100.0 else 0.1


def _cost(candidate: Candidate) -> float:
    return candidate.prediction.cost
