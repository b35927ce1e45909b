"""How many instances should hold decodes, and which: the pool-level target.

Steps with decodes must end within the TBT SLO, so each pays the step's base cost that often; an
instance without decodes pays it once per long prefill step. The fewer instances decode, the less
base cost the pool pays in all. The target is the fewest that can hold every decode of the moment
(with head room, and within their KV), recomputed at each placement from what is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.global_sched.policy.loads import Load


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """Shares of one."""

    fill: float = 0.93
    """How much of the room a TBT SLO leaves to decodes a holder is planned to use."""
    overflow: float = 0.3
    """Over the number of instances: the part of a holder's room that is not worth one more holder.

    One more of two takes half of the pool from prompts, one more of eight an eighth."""
    kv_fill: float = 0.8
    resident_share: float = 0.4
    """Prompts in an instance's KV up to this share of the room are work in passing."""
    growth: float = 0.25
    """Contexts are planned to grow by this share of the mean output."""
    least_base_share: float = 0.2
    """Below this share of the TBT SLO a step's base cost is not worth gathering for: at loose SLOs
    mixed batches lose next to nothing, and every instance's spare time shortens TTFT."""


def decode_holders(
    loads: Sequence[Load],
    slo_tbt_ms: float,
    context_tokens: float,
    output_tokens: float,
    settings: TargetSettings,
) -> frozenset[str]:
    """Ids of the instances that should decode: those that decode most already."""
    wanted = _target(loads, slo_tbt_ms, context_tokens, output_tokens, settings)
    by_decodes = sorted(loads, key=lambda load: (-load.decode_ms, load.wait_ms))
    return frozenset(load.view.instance_id for load in by_decodes[:wanted])


def _target(
    loads: Sequence[Load],
    slo_tbt_ms: float,
    context_tokens: float,
    output_tokens: float,
    settings: TargetSettings,
) -> int:
    first = loads[0]
    if first.view.model.base_ms < settings.least_base_share * slo_tbt_ms:
        return len(loads)
    room_ms = settings.fill * slo_tbt_ms - first.view.model.base_ms
    if room_ms <= 0.0:
        return len(loads)
    # What decodes now and the prompts that already sit in KV, not those that still queue: a long
    # queue would else spread the decodes just when gathering them makes prompts go faster.
    growth_ms = settings.growth * output_tokens * first.view.model.context_ms
    spare_ms = settings.resident_share * room_ms
    decode_ms = first.own_decode_ms
    for load in loads:
        resident_ms = load.resident_prompts(context_tokens) * load.own_decode_ms
        decode_ms += load.running_decode_ms + max(resident_ms - spare_ms, 0.0)
        decode_ms += growth_ms * load.view.num_decodes
    contexts = sum(load.view.decode_context_tokens for load in loads)
    kv_tokens = settings.kv_fill * first.view.kv_capacity_tokens
    needed = max(decode_ms / room_ms, (contexts + context_tokens) / kv_tokens)
    return min(max(math.ceil(needed - settings.overflow / len(loads)), 1), len(loads))
