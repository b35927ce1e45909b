"""What the `dynaserve` policy works out about every instance before it weighs candidates."""

from __future__ import annotations

from services.global_sched.policy.predict import pace_of, request_decode_ms, uncached_tokens
from services.global_sched.policy.views import InstanceView, Pace, PoolView, RequestView

LEAST_HORIZON_MS = 1.0


class Load:
    """One instance as this request would find it. Milliseconds and tokens."""

    __slots__ = (
        "all_wait_ms",
        "decode_ms",
        "horizon_ms",
        "inbound_ms",
        "kv_free_tokens",
        "own_decode_ms",
        "running_decode_ms",
        "step_ms",
        "tokens_per_ms",
        "uncached",
        "view",
        "wait_ms",
    )

    def __init__(
        self,
        view: InstanceView,
        pace: Pace,
        uncached: int,
        own_decode_ms: float,
        horizon_ms: float,
    ) -> None:
        """``uncached``: prompt tokens of this request it would have to compute.
        ``own_decode_ms``: marginal step time of this request. ``horizon_ms``: until the last part
        of a prompt that is inbound anywhere has come: the longest wait."""
        self.view = view
        self.uncached = uncached
        self.own_decode_ms = own_decode_ms
        self.horizon_ms = horizon_ms
        self.tokens_per_ms, self.wait_ms, self.inbound_ms = pace[:3]
        self.running_decode_ms, self.decode_ms = pace[3:]
        self.step_ms = view.model.base_ms + self.decode_ms + own_decode_ms
        """A step without prefill, with this request decoding too."""
        self.all_wait_ms = self.wait_ms + self.inbound_ms
        """Until everything placed here is done, what is inbound included."""
        self.kv_free_tokens = (
            view.kv_free_tokens - view.outstanding_prefill_tokens - view.inbound_prefill_tokens
        )
        """Free KV less what placed prompts will take."""

    def prefill_ms(self, tokens: int) -> float:
        """Until ``tokens`` of this request's prompt would be done, the queue first.

        What is inbound comes evenly over the horizon, and goes first when it is there: it is older.
        """
        own_ms = self.wait_ms + tokens / self.tokens_per_ms
        share = self.inbound_ms / self.horizon_ms
        if own_ms < (1.0 - share) * self.horizon_ms:
            return own_ms / (1.0 - share)
        return own_ms + self.inbound_ms


def survey(request: RequestView, pool: PoolView) -> list[Load]:
    """Every instance as the request would find it."""
    paces = [pace_of(view, request.slo_tbt_s) for view in pool.instances]
    horizon_ms = max((pace.wait_ms for pace in paces), default=0.0) + LEAST_HORIZON_MS
    loads = []
    model, own_ms = None, 0.0
    for view, pace in zip(pool.instances, paces, strict=True):
        if view.model is not model:
            model, own_ms = view.model, request_decode_ms(view.model, request)
        uncached = uncached_tokens(request, view.instance_id)
        loads.append(Load(view, pace, uncached, own_ms, horizon_ms))
    return loads
