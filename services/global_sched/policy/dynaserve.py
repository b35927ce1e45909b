"""The `dynaserve` policy: gather decodes as the SLO rewards, cut where the handoff is hidden."""

from __future__ import annotations

from dataclasses import dataclass, field
from zlib import crc32

from services.global_sched.policy.decode_target import TargetSettings, decode_holders
from services.global_sched.policy.loads import End, Turn
from services.global_sched.policy.predict import handoff_s, typical_tokens
from services.global_sched.policy.views import (
    Decision,
    NoInstance,
    Pace,
    PoolView,
    RequestView,
    Weighed,
    cost_of,
    prediction_of,
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
        turn = Turn(request, pool)
        if not turn.paces:
            raise NoInstance
        holders = decode_holders(turn, self.settings.target)
        uncut = self._uncut(turn, holders)
        cuts = self._cuts(turn, holders) if len(turn.paces) > 1 else []
        return self._choose(turn, holders, uncut, cuts)

    # ---- candidates ----------------------------------------------------------------------

    def _uncut(self, turn: Turn, holders: frozenset[Pace]) -> list[Weighed]:
        """The request whole on each instance."""
        candidates: list[Weighed] = []
        for pace, uncached, prefill_ms in zip(
            turn.paces, turn.uncached, turn.prefill_ms, strict=True
        ):
            ttft_s, own_ms = 1e-3 * prefill_ms, pace.own_decode_ms(turn.context)
            burden_s = self._burden_s(pace, own_ms, uncached + turn.mean, pace in holders, turn)
            tbt_s = 1e-3 * (pace.step_ms + own_ms)
            candidates.append((pace.instance_id, None, None, ttft_s, tbt_s, ttft_s + burden_s))
        return candidates

    def _burden_s(
        self, pace: Pace, own_ms: float, kv_tokens: float, holds: bool, turn: Turn
    ) -> float:
        """What decoding here costs the pool, in seconds of TTFT.

        ``own_ms``: marginal step time of the request; ``holds``: the instance is a decode holder.
        """
        settings, burden_s = self.settings, 0.0
        over = (pace.step_ms + own_ms) / pace.kept_tbt_ms - settings.target.fill
        if over > 0.0:
            burden_s = settings.tbt_weight_s * over
        short = kv_tokens - pace.kv_free_tokens
        if short > 0.0:
            burden_s += settings.kv_weight_s * (short / pace.kv_capacity_tokens)
        if holds:
            return burden_s + 1e-3 * settings.spread_weight * (pace.decode_ms + own_ms)
        return burden_s + settings.convert_weight * (1e-3 * pace.base_ms * turn.mean)

    def _cuts(self, turn: Turn, holders: frozenset[Pace]) -> list[Weighed]:
        """The promising cuts of the most promising pairs."""
        alphas, betas = self._ends(turn, holders)
        return [
            self._cut(alpha, beta, cut, turn)
            for alpha in alphas
            for beta in betas
            if alpha is not beta
            for cut in _cut_points(alpha, beta, turn)
        ]

    def _ends(self, turn: Turn, holders: frozenset[Pace]) -> tuple[list[End], list[End]]:
        """Where a prompt is done soonest, and the holders with the most room."""
        paces, prompt = turn.paces, turn.prompt
        # Where every instance decodes a cut hardly ever pays: few pairs say so.
        number = 2 if len(holders) == len(paces) else self.settings.shortlist
        soonest = sorted(range(len(paces)), key=turn.prefill_ms.__getitem__)[:number]
        roomy = sorted(
            [
                (pace.kv_free_tokens < prompt, pace.decode_ms, index)
                for index, pace in enumerate(paces)
                if pace in holders
            ]
        )[:number]
        betas = {index: turn.end(index, holders) for _, _, index in roomy}
        alphas = [betas.get(index) or turn.end(index, holders) for index in soonest]
        return alphas, list(betas.values())

    def _cut(self, alpha: End, beta: End, cut: int, turn: Turn) -> Weighed:
        sent, burdens_s = alpha.sent, beta.burdens_s
        alpha_s, moved_s = sent[cut] if cut in sent else _send(alpha, cut, turn)
        burden_s = burdens_s[cut] if cut in burdens_s else self._bear(beta, cut, turn)
        tail, tbt_s = turn.prompt - cut, beta.step_s
        if tail > 0:
            ttft_s = _tail_done_s(alpha_s + moved_s, tail, cut, beta)
        else:
            ttft_s, step_s = alpha_s, beta.next_step_s
            late = (moved_s + step_s + beta.late_step_s - turn.slo_s) / step_s
            if late > 0.0:
                late *= turn.share_hurt_by_one_gap
                burden_s += self.settings.miss_weight_s * (late if late < 1.0 else 1.0)
            tbt_s = moved_s + 0.5 * step_s + tbt_s
            if tail < 0:
                share = min(-tail / max(turn.mean, 1.0), 1.0)
                burden_s += share * self._burden_s(alpha.pace, alpha.own_ms, cut, alpha.holds, turn)
        return (alpha.instance_id, beta.instance_id, cut, ttft_s, tbt_s, ttft_s + burden_s)

    def _bear(self, beta: End, cut: int, turn: Turn) -> float:
        """What decoding on beta costs."""
        kv_tokens = cut + turn.mean
        burden_s = self._burden_s(beta.pace, beta.own_ms, kv_tokens, beta.holds, turn)
        beta.burdens_s[cut] = burden_s
        return burden_s

    # ---- choice --------------------------------------------------------------------------

    def _choose(
        self, turn: Turn, holders: frozenset[Pace], uncut: list[Weighed], cuts: list[Weighed]
    ) -> Decision:
        request = turn.request
        best_uncut = min(uncut, key=cost_of)
        best_cut = min(cuts, key=cost_of, default=None)
        at_prompt = [each for each in cuts if each[2] == turn.prompt]
        disaggregated = min(at_prompt, key=cost_of, default=None)
        control = self._is_control(request.request_id)
        chosen, reason = best_uncut, "uncut is cheapest"
        if best_cut is not None and best_cut[5] < best_uncut[5]:
            gain_s = best_uncut[5] - best_cut[5]
            if gain_s <= self._least_gain_s(best_uncut, len(holders) == len(uncut)):
                reason = "a cut would gain less than the predictor's error"
            elif request.traffic_class in turn.pool.unsplit_classes:
                reason = "guard: cuts lost against the control group in this class"
            elif control:
                reason = "control group"
            else:
                chosen, reason = best_cut, "cut is cheapest"
        alpha_id, beta_id, cut = chosen[:3]
        return Decision(
            "unsplit" if beta_id is None else "cut",
            alpha_id,
            beta_id,
            cut,
            prediction_of(chosen),
            prediction_of(best_uncut),
            prediction_of(disaggregated) if disaggregated else None,
            (*uncut, *cuts),
            reason,
            control,
            tuple(sorted([pace.instance_id for pace in holders])),
        )

    def _least_gain_s(self, uncut: Weighed, all_hold: bool) -> float:
        settings = self.settings
        share = settings.least_gain_all_decode if all_hold else settings.least_gain
        return settings.least_gain_s + share * uncut[5]

    def _is_control(self, request_id: str) -> bool:
        return crc32(request_id.encode()) % 10_000 < 10_000 * self.settings.control_share


def _cut_points(alpha: End, beta: End, turn: Turn) -> list[int]:
    """Cuts worth weighing for this pair, each legal."""
    prompt, last = turn.prompt, turn.last_cut
    points = [prompt - 1] if 1 < prompt <= last + 1 else []
    ahead_ms = beta.all_wait_ms - alpha.wait_ms
    if ahead_ms > 0.0:
        arrives_together = int(ahead_ms * alpha.tokens_per_ms)
        inside = (alpha.cached + arrives_together) // BLOCK_TOKENS * BLOCK_TOKENS
        if max(alpha.cached, 1) < inside < prompt - 1 and inside <= last:
            points.append(inside)
    if 1 <= prompt <= last:
        points.append(prompt)
    if beta.kv_free_tokens < prompt:
        streamed = prompt + int(0.5 * turn.request.length.p50)
        if prompt < streamed <= last:
            points.append(streamed)
    return points


def _send(alpha: End, cut: int, turn: Turn) -> tuple[float, float]:
    """When alpha has done its part, and how long its KV is on the way then. Seconds."""
    prompt = turn.prompt
    own = (cut if cut < prompt else prompt) - alpha.cached
    work = typical_tokens(alpha.view.model, own if own > 1 else 1, alpha.cached)
    alpha_s = 1e-3 * alpha.pace.prefill_ms(work, turn.horizon_ms)
    sent = alpha.sent[cut] = alpha_s, handoff_s(alpha.view, cut, turn.pool)
    return sent


def _tail_done_s(arrives_s: float, tail: int, cut: int, beta: End) -> float:
    """When beta has computed its part of the prompt: it meets a step in progress first."""
    step_s = beta.met_step_s
    if tail <= BLOCK_TOKENS:
        return arrives_s + (1.5 if beta.num_decodes else 1.0) * step_s
    own_s = 1e-3 * typical_tokens(beta.view.model, tail, cut) / beta.tokens_per_ms
    return max(arrives_s + 0.5 * step_s, 1e-3 * beta.all_wait_ms) + own_s
