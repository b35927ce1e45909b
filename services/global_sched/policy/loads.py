"""What the `dynaserve` policy works out of a request and the pool before it weighs candidates."""

from __future__ import annotations

from services.global_sched.policy.predict import handoff_s, pace_of, typical_tokens
from services.global_sched.policy.views import PoolView, RequestView

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
        prompt = self.prompt = request.num_prompt_tokens
        self.last_cut = request.max_cut
        self.mean = request.length.mean
        self.context = prompt + 0.5 * self.mean
        """Of its decode, half way."""
        slo_s = self.slo_s = request.slo_tbt_s
        self.slo_ms = 1e3 * slo_s
        paces = self.paces = [
            view.paces.get(slo_s) or pace_of(view, slo_s) for view in pool.instances
        ]
        horizon_ms = max([p.wait_ms for p in paces], default=0.0) + LEAST_HORIZON_MS
        self.horizon_ms = horizon_ms
        """Until the last part of a prompt that is inbound anywhere has come: the longest wait."""
        cached = request.cached_tokens
        self.uncached = (
            [max(prompt - cached.get(pace.instance_id, 0), 1) for pace in paces]
            if cached
            else [max(prompt, 1)] * len(paces)
        )
        """Prompt tokens of this request each would have to compute."""
        work = self._work()
        self.prefill_ms = [
            pace.prefill_ms(tokens, horizon_ms)
            if pace.inbound_ms
            else pace.wait_ms + tokens / pace.tokens_per_ms
            for pace, tokens in zip(paces, work, strict=True)
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


def _share_hurt_by_one_gap(request: RequestView) -> float:
    """Share of such requests that are too short for one long gap to fall outside their P99."""
    length = request.length
    if length.p50 < 100.0:
        return 1.0
    return 0.5 if length.p10 < 100.0 else 0.1


class Alpha:
    """An instance that would compute a request's beginning."""

    __slots__ = (
        "arrives_s",
        "cached",
        "index",
        "last_sent",
        "pace",
        "tokens_per_ms",
        "turn",
        "wait_ms",
        "whole_sent",
    )

    def __init__(self, turn: Turn, index: int) -> None:
        pace = self.pace = turn.paces[index]
        self.turn, self.index = turn, index
        self.wait_ms, self.tokens_per_ms = pace.wait_ms, pace.tokens_per_ms
        self.cached = turn.prompt - turn.uncached[index]
        """Prompt tokens it need not compute."""
        sent = self.last_sent = self._send(turn.prompt - 1)
        self.arrives_s = sent[0] + sent[1]
        """When everything but the prompt's last token would be at beta."""
        self.whole_sent: tuple[float, float] | None = None

    def sent(self, cut: int) -> tuple[float, float]:
        """When it has done its part, and how long its KV is on the way then. Seconds."""
        last = self.turn.prompt - 1
        if cut == last:
            return self.last_sent
        if cut != last + 1:
            return self._send(cut)
        if self.whole_sent is None:
            self.whole_sent = self._send(cut)
        return self.whole_sent

    def _send(self, cut: int) -> tuple[float, float]:
        turn, prompt = self.turn, self.turn.prompt
        own = (cut if cut < prompt else prompt) - self.cached
        view = turn.pool.instances[self.index]
        work = typical_tokens(view.model, own if own > 1 else 1, self.cached)
        return 1e-3 * self.pace.prefill_ms(work, turn.horizon_ms), handoff_s(view, cut, turn.pool)


class Beta:
    """A decode holder that would go on with a request. Seconds, unless the name says otherwise."""

    __slots__ = (
        "all_wait_ms",
        "burden_s",
        "index",
        "late_step_s",
        "met_step_s",
        "next_step_s",
        "own_ms",
        "pace",
        "step_s",
        "tail_s",
        "whole_burden_s",
    )

    def __init__(self, turn: Turn, index: int) -> None:
        pace = self.pace = turn.paces[index]
        self.index, self.all_wait_ms = index, pace.all_wait_ms
        own_ms = self.own_ms = pace.own_decode_ms(turn.context)
        """Marginal step time of this request."""
        step_s = self.step_s = 1e-3 * (pace.step_ms + own_ms)
        """A step without prefill, with this request decoding too."""
        self.late_step_s = step_s * (1.0 + pace.step_margin)
        """The same where it takes as long as the batcher reckons with."""
        met_s = self.met_step_s = pace.kept_tbt_s if pace.all_wait_ms > 0.0 else step_s
        """The step in progress when a part of a prompt arrives here; as long as the batcher lets it
        be where prompts queue."""
        self.tail_s = (1.5 if pace.num_decodes else 1.0) * met_s
        """From the arrival of a prompt's end, that a step takes along, to its token."""
        idle = pace.num_decodes == 0 and pace.wait_ms == 0.0
        self.next_step_s = step_s if idle else turn.slo_s
        """The same as ``met_step_s`` when a whole context arrives (what is inbound is behind it),
        at its longest: the gap it makes is a single one, and may be the one that counts."""
        self.burden_s = self.whole_burden_s = 0.0
        """What decoding here costs the pool after a cut one token before the prompt's end, and the
        least it costs after one behind it: set by who knows the costs."""
