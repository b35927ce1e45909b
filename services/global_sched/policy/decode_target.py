"""How many instances should hold decodes, and which: the pool-level target.

Steps with decodes must end within the TBT SLO, so each pays the step's base cost that often; an
instance without decodes pays it once per long prefill step. The fewer instances decode, the less
base cost the pool pays in all. The target is the fewest that can hold the decodes of now and of the
moment when the prompts that queue now will be done, recomputed at each placement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.global_sched.policy.loads import Load
from services.global_sched.policy.views import RequestView


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """Shares of one."""

    fill: float = 0.93
    """How much of the room a TBT SLO leaves to decodes a holder is planned to use."""
    overflow: float = 0.5
    """Over the number of instances: the part of a holder's room that is not worth one more holder.

    One more of two takes half of the pool from prompts, one more of eight an eighth. Decodes beyond
    the room wait until others end, so it is no more than a TTFT objective is of their lifetime."""
    kv_fill: float = 0.8
    least_base_share: float = 0.2
    """Below this share of the TBT SLO a step's base cost is not worth gathering for: at loose SLOs
    mixed batches lose next to nothing, and every instance's spare time shortens TTFT."""


def decode_holders(
    loads: Sequence[Load], request: RequestView, settings: TargetSettings
) -> frozenset[str]:
    """Ids of the instances that should decode: those that decode most already."""
    wanted = _target(loads, request, settings)
    by_decodes = sorted(loads, key=lambda load: (-load.decode_ms, load.wait_ms))
    return frozenset(load.view.instance_id for load in by_decodes[:wanted])


def _target(loads: Sequence[Load], request: RequestView, settings: TargetSettings) -> int:
    first, slo_tbt_ms = loads[0], 1e3 * request.slo_tbt_s
    base_ms = first.view.model.base_ms
    room_ms = settings.fill * slo_tbt_ms - base_ms
    if base_ms < settings.least_base_share * slo_tbt_ms or room_ms <= 0.0:
        return len(loads)
    lifetime_ms = max(request.length.mean, 1.0) * slo_tbt_ms
    decode_ms = first.own_decode_ms + _coming_decode_ms(loads, lifetime_ms)
    contexts = request.num_prompt_tokens + request.length.mean
    contexts += sum(load.view.decode_context_tokens for load in loads)
    kv_tokens = settings.kv_fill * first.view.kv_capacity_tokens
    needed = max(decode_ms / room_ms, contexts / kv_tokens)
    overflow = min(settings.overflow, 1e3 * request.slo_ttft_s / lifetime_ms) / len(loads)
    return min(max(math.ceil(needed - overflow), 1), len(loads))


def _coming_decode_ms(loads: Sequence[Load], lifetime_ms: float) -> float:
    """Step time of all decodes: now, or when the prompts that queue now are done, if that is more.

    By then some of today's decodes have ended, and of the prompts' too: those that queue start
    evenly over the longest wait, and a decode lasts ``lifetime_ms`` in the mean. A long queue of
    prompts with short outputs thus asks for few holders, just when gathering makes prompts faster.
    """
    now_ms = sum(load.running_decode_ms for load in loads)
    queued_ms = sum(load.decode_ms - load.running_decode_ms for load in loads)
    lifetimes = loads[0].horizon_ms / lifetime_ms
    stay = math.exp(-lifetimes)
    return max(now_ms, stay * now_ms + queued_ms * (1.0 - stay) / lifetimes)
