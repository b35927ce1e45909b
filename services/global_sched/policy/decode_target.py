"""How many instances should hold decodes, and which: the pool-level target.

Steps with decodes must end within the TBT SLO, so each pays the step's base cost that often; an
instance without decodes pays it once per long prefill step. The fewer instances decode, the less
base cost the pool pays in all. The target is the fewest that can hold the decodes of now and of the
moment when the prompts that queue now will be done, recomputed at each placement.

What counts is not the SLO but the steps that batchers plan within it: where measured steps scatter,
they keep a margin, short steps pay the base cost more often, and gathering pays at a looser SLO.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.global_sched.policy.loads import Turn


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


def decode_holders(turn: Turn, settings: TargetSettings) -> list[int]:
    """The instances that should decode, those that decode most already: indices, ascending."""
    wanted, paces = _target(turn, settings), turn.paces
    everyone = list(range(len(paces)))
    if wanted == len(paces):
        return everyone
    ranks = [pace.rank for pace in paces]
    everyone.sort(key=ranks.__getitem__)  # stable: of equals the first
    return sorted(everyone[:wanted])


def _target(turn: Turn, settings: TargetSettings) -> int:
    paces, first, mean = turn.paces, turn.paces[0], turn.mean
    base_ms = first.base_ms
    kept_ms = turn.slo_ms / (1.0 + sum([pace.step_margin for pace in paces]) / len(paces))
    room_ms = settings.fill * kept_ms - base_ms
    if base_ms < settings.least_base_share * kept_ms or room_ms <= 0.0:
        return len(paces)
    lifetime_ms = max(mean, 1.0) * kept_ms
    decode_ms = first.own_decode_ms(turn.context) + _coming_decode_ms(turn, lifetime_ms)
    contexts = turn.prompt + mean + sum([pace.decode_context_tokens for pace in paces])
    kv_tokens = settings.kv_fill * first.kv_capacity_tokens
    needed = max(decode_ms / room_ms, contexts / kv_tokens)
    overflow = min(settings.overflow, 1e3 * turn.request.slo_ttft_s / lifetime_ms) / len(paces)
    return min(max(math.ceil(needed - overflow), 1), len(paces))


def _coming_decode_ms(turn: Turn, lifetime_ms: float) -> float:
    """Step time of all decodes: now, or when the prompts that queue now are done, if that is more.

    By then some of today's decodes have ended, and of the prompts' too: those that queue start
    evenly over the longest wait, and a decode lasts ``lifetime_ms`` in the mean. A long queue of
    prompts with short outputs thus asks for few holders, just when gathering makes prompts faster.
    """
    now_ms = sum([pace.running_decode_ms for pace in turn.paces])
    queued_ms = sum([pace.pending_decode_ms for pace in turn.paces])
    lifetimes = turn.horizon_ms / lifetime_ms
    stay = math.exp(-lifetimes)
    return max(now_ms, stay * now_ms + queued_ms * (1.0 - stay) / lifetimes)
