"""Time of a whole placement inside schedulers, without the bus: the question decoded, prefix
look-up, views, the policy, admission, the messages encoded; with 64 instances, of which many
report between two placements. At last as many replicas at once as the host has cores.

python -m benchmarks.policy.placement_time [FILE.json]
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable
from multiprocessing import get_context
from random import Random

from benchmarks.policy.timing import Times, clocked, show, timed, told
from services.global_sched.actor import SchedulerActor
from services.global_sched.policy import dynaserve
from services.global_sched.settings import SchedulerSettings
from services.global_sched.wire import segment_messages
from shared.bus import encode
from shared.bus_memory import MemoryBus
from shared.prefixes import chunk_hashes, pack_hashes
from shared.schemas.message import pack_tokens
from shared.schemas.place import PLACE
from shared.schemas.prefix import PrefixUpdate
from shared.schemas.telemetry import InstanceLoad
from tests.unit.global_sched.pool_stage import GEOMETRY, coordinator, instance, load, question

INSTANCES, PREFIXES, PLACEMENTS = 64, 16, 3000
PROMPT_TOKENS, OWN_SHARE = (1024, 8192), 8
"""Lengths of prompts; one token of ``OWN_SHARE`` belongs to its request alone."""
REPORTS_BETWEEN = 8
SLO_TBT_S = {"cut": 0.025, "whole": 0.1}
DRAW = Random(0)


def scheduler(policy: str, prompt_tokens: int) -> SchedulerActor:
    """A scheduler that knows a busy pool; every instance holds beginnings of every prompt."""
    actor = SchedulerActor(MemoryBus(), SchedulerSettings(id="s", policy=policy))
    actor.registry.coordinators["c"] = coordinator()
    geometry = GEOMETRY.model_copy(update={"block_bytes": 16 * 196_608 // 2})
    now_s = actor.clock.monotonic_s()
    beginnings = [list(chunk_hashes(tokens(n, prompt_tokens), 64)) for n in range(PREFIXES)]
    for n in range(INSTANCES):
        record = instance(f"i{n}", geometry=geometry, num_blocks=32_768)
        actor.pool.on_record(record.instance_id, record, now_s)
        actor.prefixes.on_record(record.instance_id, None, record, now_s)
        held = [c for chunks in beginnings for c in chunks[: DRAW.randint(0, len(chunks))]]
        update = PrefixUpdate(
            instance_id=f"i{n}",
            sequence=1,
            chunk_tokens=64,
            is_whole=True,
            added=pack_hashes(held),
        )
        actor.prefixes.on_update(update, now_s)
        actor.pool.on_load(report(actor, n, 1), now_s)
    for _ in range(64):
        actor.admission.error.observe(0.5, 0.5)
    actor.admission.set_modes("queue", {})  # all are placed: the longer way
    return actor


def tokens(number: int, prompt_tokens: int) -> bytes:
    return pack_tokens([(number * 7919 + n * n) % 30_000 for n in range(prompt_tokens)])


def asked(n: int, prompt_tokens: int, slo_tbt_s: float) -> bytes:
    """A question as it comes: a beginning that others share, then tokens of its own."""
    own = prompt_tokens // OWN_SHARE
    prompt = tokens(n % PREFIXES, prompt_tokens - own) + pack_tokens([n] * own)
    slo = {"ttft_s": 2.0, "tbt_s": slo_tbt_s}
    return encode(question(f"r{n}", prompt_token_ids=prompt, max_tokens=1024, slo=slo))


def report(actor: SchedulerActor, n: int, sequence: int) -> InstanceLoad:
    """What instance ``n`` has, with everything that was placed on it since its last report."""
    decodes = DRAW.randint(0, 120)
    return load(
        f"i{n}",
        sequence,
        num_running=decodes,
        num_decodes=decodes,
        context_sum=1500 * decodes,
        outstanding_prefill_tokens=DRAW.randint(0, 8000),
        free_blocks=32_768 - 94 * decodes,
        num_blocks=32_768,
        admitted_request_ids=list(actor.pool._tracked[f"i{n}"].unseen),
    )


def reports(actor: SchedulerActor) -> Callable[[int], None]:
    """What comes between two placements."""

    def between(n: int) -> None:
        for each in range(REPORTS_BETWEEN):
            told = report(actor, (n * REPORTS_BETWEEN + each) % INSTANCES, n + 2)
            actor.pool.on_load(told, actor.clock.monotonic_s())

    return between


def placements(actor: SchedulerActor, questions: list[bytes]) -> Callable[[int], object]:
    """The scheduler's way from a question's bytes to those of its answer and of its messages."""

    def place(n: int) -> object:
        placement = actor._decide(PLACE.validate_json(questions[n]))
        answer = actor.memory.remember(placement.plan)
        opening = encode(placement.opening) if placement.opening else None
        return answer, opening, list(segment_messages(placement.segments, questions[n]))

    return place


def one_replica(policy: str, prompt_tokens: int, slo_tbt_s: float) -> Times:
    async def measure() -> Times:
        actor = scheduler(policy, prompt_tokens)
        questions = [asked(n, prompt_tokens, slo_tbt_s) for n in range(PLACEMENTS)]
        gc.collect()
        gc.freeze()  # as the service does
        return clocked(placements(actor, questions), PLACEMENTS, reports(actor))

    return asyncio.run(measure())


def look_up(prompt_tokens: int) -> dict[str, float]:
    """The prefixes alone."""

    async def measure() -> dict[str, float]:
        actor = scheduler("round_robin", prompt_tokens)
        requests = [
            PLACE.validate_json(asked(n, prompt_tokens, 0.1)).request for n in range(PLACEMENTS)
        ]
        return timed(lambda n: actor.prefixes.cached_tokens(requests[n]), PLACEMENTS)

    return asyncio.run(measure())


def replicas(number: int, prompt_tokens: int) -> dict[str, float]:
    """So many processes at once, each a scheduler of its own."""
    with get_context("fork").Pool(number) as pool:
        work = [("dynaserve", prompt_tokens, SLO_TBT_S["cut"])] * number
        each = pool.starmap(one_replica, work, chunksize=1)
    return told(Times.joined(each)) | {
        "replicas": number,
        "placements_per_s": round(sum(PLACEMENTS / float(t.wall.sum()) for t in each)),
        "placements_per_s_of_cpu": round(sum(PLACEMENTS / float(t.cpu.sum()) for t in each)),
    }


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    body = {
        "command": " ".join(["python -m benchmarks.policy.placement_time", *sys.argv[1:]]),
        "compiled": not dynaserve.__file__.endswith(".py"),
        "load_average": round(os.getloadavg()[0], 2),
        "instances": INSTANCES,
        "reports_between_two_placements": REPORTS_BETWEEN,
        "placement": {
            f"{policy}, {length} tokens, TBT {1e3 * slo_tbt_s:.0f} ms": told(
                one_replica(policy, length, slo_tbt_s)
            )
            for length in PROMPT_TOKENS
            for policy in ("dynaserve", "colocated")
            for slo_tbt_s in SLO_TBT_S.values()
        },
        "prefix look-up of it": {f"{length} tokens": look_up(length) for length in PROMPT_TOKENS},
        "replicas, dynaserve": {
            f"{length} tokens": replicas(cores, length) for length in PROMPT_TOKENS
        },
    }
    show(body)


if __name__ == "__main__":
    main()
