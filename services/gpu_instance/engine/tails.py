"""Ends of prompts in vLLM's queues: what takes less time to compute than it would wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from services.gpu_instance.batcher import TAIL_TOKENS

if TYPE_CHECKING:
    from vllm.config import SchedulerConfig
    from vllm.v1.request import Request


def computed(request: Request) -> int:
    """Positions that need not be computed here: a beta's begin at its cut, asked for or not."""
    done: int = request.num_computed_tokens
    params = request.kv_transfer_params
    if done or request.num_preemptions or not params or params.get("side") != "beta":
        return done
    return min(int(params["cut"]), request.num_tokens - 1)


def to_compute(request: Request) -> int:
    return max(1, request.num_tokens - computed(request))


def is_tail(request: Request) -> bool:
    return to_compute(request) <= TAIL_TOKENS


@contextmanager
def room_for_tails(
    config: SchedulerConfig, prefill_tokens: int, tail_tokens: int, num_chunks: int
) -> Iterator[None]:
    """vLLM serves running prompts before all that wait: they leave what the tails need.

    Without that a long prompt would take whole steps until it is done, and in that time no beta's
    token would be computed, nor blocks be given to one whose KV could come already.
    """
    configured = config.long_prefill_token_threshold
    if num_chunks and tail_tokens:
        share = max((prefill_tokens - tail_tokens) // num_chunks, 1)
        config.long_prefill_token_threshold = min(share, configured or share)
    try:
        yield
    finally:
        config.long_prefill_token_threshold = configured
