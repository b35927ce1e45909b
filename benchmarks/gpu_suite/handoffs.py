"""Handoffs on a live pool: what moves, how long it takes, how much of it anybody waits for.

Three parts:
``sizes`` (single handoffs of several lengths), ``streamed`` (cuts behind the prompt: the gap
between alpha's last and beta's first token), ``bystanders`` (decodes on beta's instance, with and
without handoffs arriving all the time).
"""

import asyncio
import statistics
from dataclasses import dataclass

from benchmarks.gpu_suite.pair_client import PairClient
from shared.pairing import choose_transport
from shared.schemas.registry import InstanceRecord

Figures = dict[str, float | int]


@dataclass(frozen=True)
class Plan:
    """How much of what; lengths in tokens."""

    whole: dict[int, int]
    """Length -> uncut requests."""
    cut: dict[int, int]
    """Length -> requests cut at the prompt's end but one."""
    streamed: dict[int, int]
    """Length -> requests cut 16 tokens behind the prompt."""
    bystander_length: int
    """Of the prompts that are handed over beside the decodes."""
    bystander_tokens: int
    """Each of the 32 decodes makes so many."""


GPU_PLAN = Plan(
    whole={1024: 15, 8192: 10, 31000: 3},
    cut={1024: 30, 8192: 50, 31000: 5},
    streamed={1024: 25, 8192: 15},
    bystander_length=8192,
    bystander_tokens=800,
)
CPU_PLAN = Plan({64: 5, 256: 5}, {64: 5, 256: 5}, {64: 5, 256: 5}, 256, 100)


async def measure(
    client: PairClient, records: dict[str, InstanceRecord], plan: Plan
) -> dict[str, object]:
    """All three parts on the first two instances."""
    alpha, beta = sorted(records)[:2]
    first = min(plan.cut)
    await client.run(alpha, beta, first, 4, first - 1)  # the link is built here
    return {
        "transport": choose_transport(records[alpha], records[beta]),
        "sizes": {
            str(n): await sizes(client, alpha, beta, n, plan.whole[n], repeats)
            for n, repeats in plan.cut.items()
        },
        "streamed": {
            str(n): await streamed(client, alpha, beta, n, repeats)
            for n, repeats in plan.streamed.items()
        },
        "bystanders": await bystanders(client, alpha, beta, plan),
    }


async def sizes(
    client: PairClient, alpha: str, beta: str, length: int, num_whole: int, num_cut: int
) -> Figures:
    """Cut at the prompt's end but one: the handoff is part of TTFT; beside it the uncut TTFT."""
    whole = [await client.run(alpha, None, length, 4, None) for _ in range(num_whole)]
    cut = [await client.run(alpha, beta, length, 4, length - 1) for _ in range(num_cut)]
    await asyncio.sleep(0.3)  # the last events of the last handoff
    done = [run.events["beta", "complete"] for run in cut if ("beta", "complete") in run.events]
    exposed = sorted(event.exposed_s for event in done)
    whole_s, cut_s = (sorted(r.ttft_s for r in runs) for runs in (whole, cut))
    return {
        "repeats": len(done),
        "bytes": max((event.num_bytes for event in done), default=0),
        "transfer_p50_ms": 1e3 * statistics.median(event.transfer_s for event in done),
        "exposed_p50_ms": 1e3 * statistics.median(exposed),
        "exposed_p99_ms": 1e3 * _percentile(exposed, 0.99),
        "exposed_max_ms": 1e3 * exposed[-1],
        "ttft_whole_p50_ms": 1e3 * statistics.median(whole_s),
        "ttft_cut_p50_ms": 1e3 * statistics.median(cut_s),
        "exposed_share_of_ttft": statistics.median(exposed) / statistics.median(cut_s),
    }


async def streamed(client: PairClient, alpha: str, beta: str, length: int, repeats: int) -> Figures:
    """Cut 16 tokens behind the prompt: the one gap at the cut beside all the others."""
    runs = [await client.run(alpha, beta, length, 40, length + 16) for _ in range(repeats)]
    at_cut = sorted(run.gaps_s[16] for run in runs)
    others = [gap for run in runs for i, gap in enumerate(run.gaps_s) if i != 16]
    return {
        "repeats": repeats,
        "gap_at_cut_p50_ms": 1e3 * statistics.median(at_cut),
        "gap_at_cut_p99_ms": 1e3 * _percentile(at_cut, 0.99),
        "gap_at_cut_max_ms": 1e3 * at_cut[-1],
        "other_gaps_p50_ms": 1e3 * statistics.median(others),
    }


async def bystanders(client: PairClient, alpha: str, beta: str, plan: Plan) -> Figures:
    """32 decodes on beta's instance: gaps while nothing else runs, and while handoffs arrive."""
    length = plan.bystander_length

    async def decodes() -> list[float]:
        runs = await asyncio.gather(
            *(client.run(beta, None, 64, plan.bystander_tokens, None) for _ in range(32))
        )
        return sorted(gap for run in runs for gap in run.gaps_s[8:])

    calm = await decodes()
    stop = asyncio.Event()
    count = 0

    async def keep_handing_over() -> None:
        nonlocal count
        while not stop.is_set():
            await client.run(alpha, beta, length, 2, length - 1)
            count += 1

    senders = [asyncio.create_task(keep_handing_over()) for _ in range(2)]
    try:
        busy = await decodes()
    finally:
        stop.set()
        await asyncio.gather(*senders)
    found: Figures = {"handoffs": count}
    for name, gaps in (("calm", calm), ("busy", busy)):
        found[f"{name}_gap_mean_ms"] = 1e3 * statistics.fmean(gaps)
        found[f"{name}_gap_p50_ms"] = 1e3 * _percentile(gaps, 0.5)
        found[f"{name}_gap_p99_ms"] = 1e3 * _percentile(gaps, 0.99)
    for name in ("mean", "p50", "p99"):
        found[f"{name}_ratio"] = found[f"busy_gap_{name}_ms"] / found[f"calm_gap_{name}_ms"]
    return found


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
