"""What the `dynaserve` policy works out of a request and the pool before it weighs candidates."""

from __future__ import annotations

from services.global_sched.policy.predict import pace_of, typical_tokens
from services.global_sched.policy.views import InstanceView, Pace, PoolView, RequestView

LEAST_HORIZON_MS = 1.0


class Turn:
    """What one placement goes by. Milliseconds and tokens; lists are in the pool's order."""

    __slots__ = (
        "context",
        "horizon_ms",
        "last_cut",
        "mean",
        "paces",
        "pool",
        "prefill_ms",
        "prompt",
        "request",
        "share_hurt_by_one_gap",
        "slo_ms",
        "slo_s",
        "uncached",
    )

    def __init__(self, request: RequestView, pool: PoolView) -> None:
        self.request, self.pool = request, pool
        self.prompt, self.last_cut = request.num_prompt_tokens, request.max_cut
        self.mean = request.length.mean
        self.context = self.prompt + 0.5 * self.mean
        """Of its decode, half way."""
        slo_s = self.slo_s = request.slo_tbt_s
        self.slo_ms = 1e3 * slo_s
        paces = self.paces = [pace_of(view, slo_s) for view in pool.instances]
        self.horizon_ms = max([p.wait_ms for p in paces], default=0.0) + LEAST_HORIZON_MS
        """Until the last part of a prompt that is inbound anywhere has come: the longest wait."""
        cached, prompt = request.cached_tokens, self.prompt
        self.uncached = (
            [max(prompt - cached.get(pace.instance_id, 0), 1) for pace in paces]
            if cached
            else [max(prompt, 1)] * len(paces)
        )
        """Prompt tokens of this request each would have to compute."""
        horizon_ms = self.horizon_ms
        self.prefill_ms = [
            pace.prefill_ms(tokens, horizon_ms)
            for pace, tokens in zip(paces, self._work(), strict=True)
        ]
        """Until the whole prompt would be done there."""
        self.share_hurt_by_one_gap = _share_hurt_by_one_gap(request)

    def _work(self) -> list[float]:
        """What each would have to compute, in tokens at the context its speed is stated for."""
        instances, prompt = self.pool.instances, max(self.prompt, 1)
        if not instances:
            return []
        whole = typical_tokens(instances[0].model, prompt, 0)
        if not self.request.cached_tokens:
            return [whole] * len(instances)
        return [
            whole if tokens == prompt else typical_tokens(view.model, tokens, prompt - tokens)
            for view, tokens in zip(instances, self.uncached, strict=True)
        ]

    def end(self, index: int, holders: frozenset[Pace]) -> End:
        pace, cached = self.paces[index], self.prompt - self.uncached[index]
        return End(self.pool.instances[index], pace, cached, pace in holders, self)


def _share_hurt_by_one_gap(request: RequestView) -> float:
    """Share of such requests that are too short for one long gap to fall outside their P99."""
    if request.length.p50 < 100.0:
        return 1.0
    return 0.5 if request.length.p10 < 100.0 else 0.1


class End:
    """An instance at one end of a cut: alpha or beta, as this request would find it."""

    __slots__ = (
        "all_wait_ms",
        "burdens_s",
        "cached",
        "holds",
        "instance_id",
        "kv_free_tokens",
        "late_step_s",
        "met_step_s",
        "next_step_s",
        "num_decodes",
        "own_ms",
        "pace",
        "sent",
        "step_s",
        "tokens_per_ms",
        "view",
        "wait_ms",
    )

    def __init__(
        self, view: InstanceView, pace: Pace, cached: int, holds: bool, turn: Turn
    ) -> None:
        """``cached``: prompt tokens of this request it need not compute; ``holds``: it should
        decode."""
        self.view, self.pace, self.instance_id = view, pace, pace.instance_id
        self.wait_ms, self.all_wait_ms = pace.wait_ms, pace.all_wait_ms
        self.tokens_per_ms, self.kv_free_tokens = pace.tokens_per_ms, pace.kv_free_tokens
        self.num_decodes = num_decodes = pace.num_decodes
        self.cached, self.holds = cached, holds
        self.own_ms = pace.own_decode_ms(turn.context)
        """Marginal step time of this request."""
        step_s = self.step_s = 1e-3 * (pace.step_ms + self.own_ms)
        """A step without prefill, with this request decoding too."""
        self.late_step_s = step_s * (1.0 + pace.step_margin)
        """The same where it takes as long as the batcher reckons with."""
        self.met_step_s = pace.kept_tbt_s if pace.all_wait_ms > 0.0 else step_s
        """The step in progress when a part of a prompt arrives here; as long as the
        batcher lets it be where prompts queue."""
        idle = num_decodes == 0 and pace.wait_ms == 0.0
        self.next_step_s = step_s if idle else turn.slo_s
        """The same when a whole context arrives (what is inbound is behind it), at its longest: the
        gap it makes is a single one, and may be the one that counts."""
        self.sent: dict[int, tuple[float, float]] = {}
        """By cut, what was worked out of it as alpha: pairs share most of their cuts."""
        self.burdens_s: dict[int, float] = {}
        """By cut, what was worked out of it as beta."""
