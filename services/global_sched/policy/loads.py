"""What the `dynaserve` policy works out about every instance before it weighs candidates."""

from __future__ import annotations

from typing import NamedTuple

from services.global_sched.policy.predict import (
    decode_ms,
    prefill_tokens_per_ms,
    request_decode_ms,
    uncached_tokens,
)
from services.global_sched.policy.views import InstanceView, PoolView, RequestView

LEAST_HORIZON_MS = 1.0


class Load(NamedTuple):
    """One instance as this request would find it. Milliseconds and tokens."""

    view: InstanceView
    uncached: int
    """Prompt tokens of this request it would have to compute."""
    tokens_per_ms: float
    wait_ms: float
    """Until the prompts that are here are done."""
    inbound_ms: float
    """Time to compute the parts of prompts that will come here from elsewhere."""
    horizon_ms: float
    """Until the last of them has come: the longest wait anywhere."""
    running_decode_ms: float
    """Marginal step time of what decodes here now."""
    decode_ms: float
    """Marginal step time of what decodes or will decode here."""
    own_decode_ms: float
    """Marginal step time of this request."""
    kv_free_tokens: int
    """Free KV less what placed prompts will take."""

    @property
    def step_ms(self) -> float:
        """A step without prefill, with this request decoding too."""
        return self.view.model.base_ms + self.decode_ms + self.own_decode_ms

    def resident_prompts(self, context_tokens: float) -> float:
        """Prompts that hold KV but do not decode yet, if each is ``context_tokens`` long."""
        view = self.view
        used = view.kv_capacity_tokens - view.kv_free_tokens - view.decode_context_tokens
        return max(used, 0) / max(context_tokens, 1.0)

    def prefill_ms(self, tokens: int) -> float:
        """Until ``tokens`` of this request's prompt would be done, the queue first.

        What is inbound comes evenly over the horizon, and goes first when it is there: it is older.
        """
        own_ms = self.wait_ms + tokens / self.tokens_per_ms
        share = self.inbound_ms / self.horizon_ms
        if own_ms < (1.0 - share) * self.horizon_ms:
            return own_ms / (1.0 - share)
        return own_ms + self.inbound_ms

    @property
    def all_wait_ms(self) -> float:
        """Until everything placed here is done, what is inbound included."""
        return self.wait_ms + self.inbound_ms


def survey(request: RequestView, pool: PoolView) -> list[Load]:
    speeds = [prefill_tokens_per_ms(view, request.slo_tbt_s) for view in pool.instances]
    waits_ms = [
        view.outstanding_prefill_tokens / speed
        for view, speed in zip(pool.instances, speeds, strict=True)
    ]
    horizon_ms = max(waits_ms, default=0.0) + LEAST_HORIZON_MS
    return [
        _load(view, request, speed, wait_ms, horizon_ms)
        for view, speed, wait_ms in zip(pool.instances, speeds, waits_ms, strict=True)
    ]


def _load(
    view: InstanceView, request: RequestView, speed: float, wait_ms: float, horizon_ms: float
) -> Load:
    return Load(
        view,
        uncached_tokens(request, view.instance_id),
        speed,
        wait_ms,
        view.inbound_prefill_tokens / speed,
        horizon_ms,
        view.model.decode_step_ms(view.num_decodes, view.decode_context_tokens)
        - view.model.base_ms,
        decode_ms(view),
        request_decode_ms(view, request),
        view.kv_free_tokens - view.outstanding_prefill_tokens - view.inbound_prefill_tokens,
    )
