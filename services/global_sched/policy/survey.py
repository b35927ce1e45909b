"""The ways to run a request, what each costs, and the cheapest without weighing all of them."""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass, field

from services.global_sched.policy.decode_target import TargetSettings, decode_holders
from services.global_sched.policy.loads import Alpha, Beta, Turn
from services.global_sched.policy.predict import typical_tokens
from services.global_sched.policy.views import (
    Pace,
    PoolView,
    Prediction,
    RequestView,
    Weighed,
    cost_of,
    prediction_of,
)

BLOCK_TOKENS = 16
"""Of KV. The end of a prompt that is no longer goes with any step."""


@dataclass(frozen=True, slots=True)
class CostSettings:
    """Weights of the cost, in seconds of TTFT."""

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


class Survey:
    """One request before one pool. ``weighed`` and what follows from it are worked out when asked.

    The cheapest placement is found by bounds. No cost is negative, and rounding keeps the order of
    sums, so a candidate is passed over when some of the terms of its cost already come to more than
    the best cost so far: what is found is the same, to the last bit, as the first of the cheapest
    in ``weighed``.
    """

    __slots__ = ("_cuts", "_ends", "holders", "settings", "turn")

    def __init__(self, request: RequestView, pool: PoolView, settings: CostSettings) -> None:
        """``pool`` must not be empty."""
        self.settings = settings
        turn = self.turn = Turn(request, pool)
        self.holders = decode_holders(turn, settings.target)
        """Indices of the instances that should decode, in ascending order."""
        self._ends: tuple[list[Alpha], list[Beta]] | None = None
        self._cuts: list[Weighed] | None = None

    @property
    def all_hold(self) -> bool:
        return len(self.holders) == len(self.turn.paces)

    # ---- the whole list ------------------------------------------------------------------

    @property
    def weighed(self) -> tuple[Weighed, ...]:
        """Every candidate, the uncut ones first."""
        return (*self.uncut(), *self.cuts())

    @property
    def disaggregated(self) -> Prediction | None:
        """Of the cheapest cut at the prompt's end."""
        at_prompt = [each for each in self.cuts() if each[2] == self.turn.prompt]
        best = min(at_prompt, key=cost_of, default=None)
        return prediction_of(best) if best else None

    @property
    def decode_holders(self) -> tuple[str, ...]:
        return tuple(sorted([self.turn.paces[index].instance_id for index in self.holders]))

    def uncut(self) -> list[Weighed]:
        """The request whole on each instance."""
        holders = set(self.holders)
        return [self._whole(index, index in holders) for index in range(len(self.turn.paces))]

    def cuts(self) -> list[Weighed]:
        """The promising cuts of the most promising pairs."""
        if self._cuts is None:
            alphas, betas = self.ends()
            self._cuts = [
                self._cut(alpha, beta, cut)
                for alpha in alphas
                for beta in betas
                if alpha.index != beta.index
                for cut in _cut_points(alpha, beta)
            ]
        return self._cuts

    # ---- the cheapest --------------------------------------------------------------------

    def best_uncut(self) -> Weighed:
        """The first of the cheapest of `uncut`."""
        return min(self._uncut_among(1, []), key=cost_of)

    def cheapest(self, count: int) -> list[Weighed]:
        """So many of `weighed`, the cheapest first."""
        cuts = self.cuts()
        uncut = self._uncut_among(count, sorted([each[5] for each in cuts]))
        return sorted([*uncut, *cuts], key=cost_of)[:count]

    def _uncut_among(self, count: int, costs_s: list[float]) -> list[Weighed]:
        """Those of `uncut` that may be among the ``count`` cheapest together with others that cost
        ``costs_s``, in ascending order; costs of those returned are added there.

        By the least that each may cost, until that is more than so many are known to cost.
        """
        least_s, holders = self._least_s(), self.holders
        found: list[tuple[int, Weighed]] = []
        for index in sorted(range(len(least_s)), key=least_s.__getitem__):
            if count <= len(costs_s) and (count == 0 or least_s[index] > costs_s[count - 1]):
                break
            each = self._whole(index, index in holders)
            insort(costs_s, each[5])
            found.append((index, each))
        return [each for _, each in sorted(found)]

    def _least_s(self) -> list[float]:
        """Of each instance a part of what the request costs whole there."""
        turn, settings, holders = self.turn, self.settings, self.holders
        spread, convert, mean = 1e-3 * settings.spread_weight, settings.convert_weight, turn.mean
        if self.all_hold:
            added = [spread * pace.decode_ms for pace in turn.paces]
        else:
            added = [convert * (1e-3 * pace.base_ms * mean) for pace in turn.paces]
            for index in holders:
                added[index] = spread * turn.paces[index].decode_ms
        return [1e-3 * ms + more for ms, more in zip(turn.prefill_ms, added, strict=True)]

    def best_cut(self, below_s: float = math.inf) -> Weighed | None:
        """The first of the cheapest of `cuts`, if it costs less than ``below_s``.

        At the last token of the prompt a cut costs a sum of terms of either end, which are worked
        out once per end; behind it, at least what beta's gap and decode load cost. Most pairs have
        no other cuts, and hardly any gets past these two bounds.
        """
        if len(self.turn.paces) == 1:
            return None
        alphas, betas = self.ends()
        best, least_s = None, below_s
        for alpha in alphas:
            index, arrives_s = alpha.index, alpha.arrives_s
            for beta in betas:
                last_s = arrives_s + beta.tail_s + beta.burden_s
                if (
                    last_s >= least_s
                    and beta.whole_burden_s >= least_s
                    and not _inside(alpha, beta)
                ):
                    continue
                for cut in _cut_points(alpha, beta) if beta.index != index else ():
                    each = self._cut(alpha, beta, cut)
                    if each[5] < least_s:
                        best, least_s = each, each[5]
        return best

    # ---- costs ---------------------------------------------------------------------------

    def _whole(self, index: int, holds: bool) -> Weighed:
        turn = self.turn
        pace, ttft_s = turn.paces[index], 1e-3 * turn.prefill_ms[index]
        own_ms = pace.own_decode_ms(turn.context)
        burden_s = self._burden_s(pace, own_ms, turn.uncached[index] + turn.mean, holds)
        tbt_s = 1e-3 * (pace.step_ms + own_ms)
        return (pace.instance_id, None, None, ttft_s, tbt_s, ttft_s + burden_s)

    def _burden_s(self, pace: Pace, own_ms: float, kv_tokens: float, holds: bool) -> float:
        """What decoding here costs the pool, in seconds of TTFT.

        ``own_ms``: marginal step time of the request; ``holds``: the instance is a decode holder.
        """
        settings, turn, burden_s = self.settings, self.turn, 0.0
        over = (pace.step_ms + own_ms) / pace.kept_tbt_ms - settings.target.fill
        if over > 0.0:
            burden_s = settings.tbt_weight_s * over
        short = kv_tokens - pace.kv_free_tokens
        if short > 0.0:
            burden_s += settings.kv_weight_s * (short / pace.kv_capacity_tokens)
        if holds:
            return burden_s + 1e-3 * settings.spread_weight * (pace.decode_ms + own_ms)
        return burden_s + settings.convert_weight * (1e-3 * pace.base_ms * turn.mean)

    def _cut(self, alpha: Alpha, beta: Beta, cut: int) -> Weighed:
        turn = self.turn
        alpha_s, moved_s = alpha.sent(cut)
        tail, tbt_s = turn.prompt - cut, beta.step_s
        burden_s = beta.burden_s if tail == 1 else self._bear_s(beta, cut)
        if tail > 0:
            ttft_s = _tail_done_s(alpha_s + moved_s, tail, cut, beta, turn)
        else:
            ttft_s = alpha_s
            burden_s += self._gap_s(beta, moved_s)
            tbt_s = moved_s + 0.5 * beta.next_step_s + tbt_s
            if tail < 0:
                share = min(-tail / max(turn.mean, 1.0), 1.0)
                own_ms = alpha.pace.own_decode_ms(turn.context)
                holds = alpha.index in self.holders
                burden_s += share * self._burden_s(alpha.pace, own_ms, cut, holds)
        ids = alpha.pace.instance_id, beta.pace.instance_id
        return (*ids, cut, ttft_s, tbt_s, ttft_s + burden_s)

    def _bear_s(self, beta: Beta, cut: int) -> float:
        """What decoding on beta costs."""
        return self._burden_s(beta.pace, beta.own_ms, cut + self.turn.mean, True)

    def _gap_s(self, beta: Beta, moved_s: float) -> float:
        """What the gap at a cut behind the prompt costs, with the KV so long on its way."""
        turn, step_s = self.turn, beta.next_step_s
        late = (moved_s + step_s + beta.late_step_s - turn.slo_s) / step_s
        if late <= 0.0:
            return 0.0
        late *= turn.share_hurt_by_one_gap
        return self.settings.miss_weight_s * (late if late < 1.0 else 1.0)

    # ---- ends ----------------------------------------------------------------------------

    def ends(self) -> tuple[list[Alpha], list[Beta]]:
        """Where a prompt is done soonest, and the holders with the most room."""
        if self._ends is None:
            turn = self.turn
            # Where every instance decodes a cut hardly ever pays: few pairs say so.
            number = 2 if self.all_hold else self.settings.shortlist
            order = sorted(range(len(turn.paces)), key=turn.prefill_ms.__getitem__)
            alphas = [Alpha(turn, index) for index in order[:number]]
            self._ends = alphas, [self._beta(index) for index in self._roomiest()[:number]]
        return self._ends

    def _roomiest(self) -> list[int]:
        """Holders that can take the prompt, the least loaded first; then those that cannot."""
        paces, prompt = self.turn.paces, self.turn.prompt
        decode_ms = [pace.decode_ms for pace in paces]
        order = sorted(self.holders, key=decode_ms.__getitem__)
        if all([paces[index].kv_free_tokens >= prompt for index in order]):
            return order
        return sorted(order, key=lambda index: paces[index].kv_free_tokens < prompt)

    def _beta(self, index: int) -> Beta:
        beta = Beta(self.turn, index)
        beta.burden_s = self._bear_s(beta, self.turn.prompt - 1)
        beta.whole_burden_s = beta.burden_s + self._gap_s(beta, 0.0)
        return beta


def _inside(alpha: Alpha, beta: Beta) -> int:
    """The cut inside the prompt where alpha's part arrives as beta's queue is done; 0: none."""
    ahead_ms = beta.all_wait_ms - alpha.wait_ms
    if ahead_ms <= 0.0:
        return 0
    turn, cached = alpha.turn, alpha.cached
    cut = (cached + int(ahead_ms * alpha.tokens_per_ms)) // BLOCK_TOKENS * BLOCK_TOKENS
    if cut <= cached or cut <= 1 or cut >= turn.prompt - 1 or cut > turn.last_cut:
        return 0
    return cut


def _cut_points(alpha: Alpha, beta: Beta) -> list[int]:
    """Cuts worth weighing for this pair, each legal."""
    turn = alpha.turn
    prompt, last = turn.prompt, turn.last_cut
    points = [prompt - 1] if 1 < prompt <= last + 1 else []
    between = _inside(alpha, beta)
    if between:
        points.append(between)
    if 1 <= prompt <= last:
        points.append(prompt)
    if beta.pace.kv_free_tokens < prompt:
        streamed = prompt + int(0.5 * turn.request.length.p50)
        if prompt < streamed <= last:
            points.append(streamed)
    return points


def _tail_done_s(arrives_s: float, tail: int, cut: int, beta: Beta, turn: Turn) -> float:
    """When beta has computed its part of the prompt: it meets a step in progress first."""
    if tail <= BLOCK_TOKENS:
        return arrives_s + beta.tail_s
    pace, model = beta.pace, turn.pool.instances[beta.index].model
    own_s = 1e-3 * typical_tokens(model, tail, cut) / pace.tokens_per_ms
    return max(arrives_s + 0.5 * beta.met_step_s, 1e-3 * beta.all_wait_ms) + own_s
