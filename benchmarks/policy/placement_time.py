"""Time of a whole placement inside a scheduler, without the bus: prefix look-up, views, the policy,
admission and the messages, with 64 instances of which many report between two placements.

python -m benchmarks.policy.placement_time [FILE.json]
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from random import Random

from benchmarks.policy.timing import show, timed
from services.global_sched.actor import SchedulerActor
from services.global_sched.settings import SchedulerSettings
from shared.bus_memory import MemoryBus
from shared.prefixes import chunk_hashes, pack_hashes
from shared.schemas.message import pack_tokens
from shared.schemas.prefix import PrefixUpdate
from tests.unit.global_sched.pool_stage import GEOMETRY, coordinator, instance, load, question

INSTANCES, PROMPT_TOKENS, PREFIXES, PLACEMENTS = 64, 8192, 16, 3000
REPORTS_BETWEEN = 8
DRAW = Random(0)


def scheduler(policy: str) -> SchedulerActor:
    """A scheduler that knows a busy pool; every instance holds beginnings of every prompt."""
    actor = SchedulerActor(MemoryBus(), SchedulerSettings(id="s", policy=policy))
    actor.registry.coordinators["c"] = coordinator()
    geometry = GEOMETRY.model_copy(update={"block_bytes": 16 * 196_608 // 2})
    now_s = actor.clock.monotonic_s()
    for n in range(INSTANCES):
        record = instance(f"i{n}", geometry=geometry, num_blocks=32_768)
        actor.pool.on_record(record.instance_id, record, now_s)
        actor.prefixes.on_record(record.instance_id, None, record, now_s)
        held: list[bytes] = []
        for number in range(PREFIXES):
            chunks = list(chunk_hashes(tokens(number), 64))
            held += chunks[: DRAW.randint(0, len(chunks))]
        update = PrefixUpdate(
            instance_id=f"i{n}",
            sequence=1,
            chunk_tokens=64,
            is_whole=True,
            added=pack_hashes(held),
        )
        actor.prefixes.on_update(update, now_s)
        report(actor, n, 1)
    for _ in range(64):
        actor.admission.error.observe(0.5, 0.5)
    return actor


def tokens(number: int) -> bytes:
    return pack_tokens([(number * 7919 + n * n) % 30_000 for n in range(PROMPT_TOKENS)])


def report(actor: SchedulerActor, n: int, sequence: int) -> None:
    """What instance ``n`` has, with everything that was placed on it since its last report."""
    decodes = DRAW.randint(0, 120)
    shown = list(actor.pool._tracked[f"i{n}"].unseen)
    told = load(
        f"i{n}",
        sequence,
        num_running=decodes,
        num_decodes=decodes,
        context_sum=1500 * decodes,
        outstanding_prefill_tokens=DRAW.randint(0, 8000),
        free_blocks=32_768 - 94 * decodes,
        num_blocks=32_768,
        admitted_request_ids=shown,
    )
    actor.pool.on_load(told, actor.clock.monotonic_s())


async def measure(policy: str) -> dict[str, object]:
    actor = scheduler(policy)
    prompts = [tokens(number) for number in range(PREFIXES)]
    asked = [
        question(f"r{n}", prompt_token_ids=prompts[n % PREFIXES], max_tokens=1024)
        for n in range(PLACEMENTS)
    ]

    def between(n: int) -> None:
        for each in range(REPORTS_BETWEEN):
            report(actor, (n * REPORTS_BETWEEN + each) % INSTANCES, n + 2)

    def place(n: int) -> None:
        actor._decide(asked[n])

    def look_up(n: int) -> None:
        actor.prefixes.cached_tokens(asked[n].request)

    actor.admission.set_modes("queue", {})  # all are placed: the longer way
    gc.collect()
    gc.freeze()  # as the service does
    return {
        "placement": timed(place, PLACEMENTS, between),
        "prefix look-up of it": timed(look_up, PLACEMENTS),
    }


def main() -> None:
    body = {
        "command": " ".join(["python -m benchmarks.policy.placement_time", *sys.argv[1:]]),
        "load_average": round(os.getloadavg()[0], 2),
        "instances": INSTANCES,
        "prompt_tokens": PROMPT_TOKENS,
        "reports_between_two_placements": REPORTS_BETWEEN,
        "policies": {name: asyncio.run(measure(name)) for name in ("dynaserve", "colocated")},
    }
    show(body)


if __name__ == "__main__":
    main()
