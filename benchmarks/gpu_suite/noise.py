"""Is the output of a cut request as near to an uncut one as a rerun of the uncut one is?

In bf16 a greedy output depends on which requests share a step, and one other token changes all that
follow. So the measure of a cut is the noise of reruns: three passes over the same prompts, uncut,
uncut in other company, and cut anywhere; each of the last two is compared with the first.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from benchmarks.gpu_suite.pair_client import PairClient

Figures = dict[str, float | int]
Outputs = list[list[int]]


async def measure(
    client: PairClient, alpha: str, beta: str, prompts: int, length: int, output: int
) -> dict[str, object]:
    """``prompts`` of ``length`` tokens, ``output`` tokens each; shares of one."""
    rng = random.Random(1)
    asked = [client.prompt(length) for _ in range(prompts)]
    cuts = [rng.randint(1, length + output - 2) for _ in asked]
    first = await _in_company(client, alpha, None, asked, output, lambda n: None, 8)
    again = await _in_company(client, beta, None, asked[::-1], output, lambda n: None, 12)
    cut = await _in_company(client, alpha, beta, asked, output, lambda n: cuts[n], 8)
    return {
        "prompts": prompts,
        "prompt_tokens": length,
        "output_tokens": output,
        "distinct_tokens": len({token for ids in first for token in ids}),
        "rerun": compared(first, again[::-1]),
        "cut": compared(first, cut),
    }


async def _in_company(
    client: PairClient,
    alpha: str,
    beta: str | None,
    prompts: Sequence[list[int]],
    output: int,
    cut_of: Callable[[int], int | None],
    at_once: int,
) -> Outputs:
    free = asyncio.Semaphore(at_once)

    async def one(n: int) -> list[int]:
        async with free:
            return (await client.run(alpha, beta, prompts[n], output, cut_of(n))).token_ids

    return await asyncio.gather(*(one(n) for n in range(len(prompts))))


def compared(reference: Outputs, other: Outputs) -> Figures:
    """How many outputs are the same, and the mean share of tokens before the first difference.

    Both with a standard error.
    """
    same = [float(a == b) for a, b in zip(reference, other, strict=True)]
    agreed = [agreement(a, b) for a, b in zip(reference, other, strict=True)]
    return {
        "equal_outputs": _mean(same),
        "equal_outputs_error": _error(same),
        "agreed_tokens": _mean(agreed),
        "agreed_tokens_error": _error(agreed),
    }


def agreement(reference: list[int], other: list[int]) -> float:
    """Share of tokens before the first that differs."""
    agreed = 0
    for a, b in zip(reference, other, strict=False):
        if a != b:
            break
        agreed += 1
    return agreed / max(len(reference), len(other), 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _error(values: Sequence[float]) -> float:
    mean = _mean(values)
    return float((sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values)) ** 0.5)
