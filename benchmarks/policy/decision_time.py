"""Time of one decision of the scheduler, and of one plan of the batcher, on one core; and decisions
of as many replicas at once as there are cores.

python -m benchmarks.policy.decision_time [FILE.json]
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from multiprocessing import get_context

from benchmarks.policy.timing import Times, clocked, show, timed, told
from services.global_sched.policy import POLICIES, dynaserve
from services.global_sched.policy.views import (
    InstanceView,
    LengthQuantiles,
    PoolView,
    RequestView,
)
from services.gpu_instance.batcher import Batcher, PromptView, StepLoad, in_turn, prompt_ranks
from shared.latency_model import LatencyProfile, StepShape

MODEL = LatencyProfile.load().model
DRAW = random.Random(0)
REPLICA_DECISIONS = 50_000
"""Some seconds of each, so that they run at the same time."""


def pool(instances: int) -> PoolView:
    return PoolView(0.0, tuple(_instance(index) for index in range(instances)))


def _instance(index: int) -> InstanceView:
    decodes = DRAW.randint(0, 120)
    free = 526_000 - 1500 * decodes
    return InstanceView(
        f"i{index}",
        MODEL,
        ("prefill", "decode")[index % 2],
        decodes,
        1500 * decodes,
        DRAW.randint(0, 20_000),
        kv_free_tokens=free,
        kv_capacity_tokens=526_000,
    )


def request(number: int) -> RequestView:
    length = LengthQuantiles(30, 150, 500, 200)
    return RequestView(f"r{number}", 0.0, DRAW.randint(10, 8000), 4096, length, 1.5, 0.025)


def decider(name: str, instances: int) -> Callable[[int], object]:
    """Decides on the requests of a stream, each against one of some pools; warm."""
    policy, views = POLICIES[name](), [pool(instances) for _ in range(20)]
    asked = [request(number) for number in range(500)]

    def place(number: int) -> object:
        return policy.place(asked[number % 500], views[number % 20])

    for number in range(50):
        place(number)
    return place


def decisions() -> dict[str, dict[str, float]]:
    return {
        f"{name}, {instances} instances": timed(decider(name, instances), 2000)
        for name in POLICIES
        for instances in (2, 8, 64)
    }


def one_replica(instances: int) -> Times:
    return clocked(decider("dynaserve", instances), REPLICA_DECISIONS)


def replicas(number: int, instances: int = 64) -> dict[str, float]:
    """So many processes at once."""
    with get_context("fork").Pool(number) as processes:
        each = processes.map(one_replica, [instances] * number, chunksize=1)
    return told(Times.joined(each)) | {
        "replicas": number,
        "decisions_per_s": round(sum(len(times.wall) / float(times.wall.sum()) for times in each)),
    }


def batcher_step(running: int = 256, waiting: int = 64) -> dict[str, float]:
    """A plan with the work around it: the minimum slack, ranking prompts, learning the step."""
    batcher = Batcher(MODEL)
    slacks = [DRAW.uniform(20.0, 25.0) for _ in range(running)]
    prompts = [PromptView(0.0, DRAW.uniform(0, 3), DRAW.randint(1, 4000)) for _ in range(waiting)]

    def step(_: int) -> object:
        speed = batcher.prompt_speed(running, 300 * running, 25.0)
        ranked = in_turn(prompts, prompt_ranks(prompts, 0.5, speed), lost_turn=False)
        queue = ((prompt.remaining_tokens, 0) for prompt in ranked)
        plan = batcher.plan(StepLoad(running, 300 * running, min(slacks), queue))
        tokens = plan.token_budget - running
        shape = StepShape(running, 300 * running, tokens, 0.5 * tokens * tokens)
        batcher.observe(plan, shape, MODEL.step_ms(shape))
        return plan

    for number in range(50):
        step(number)
    return timed(step, 3000)


def main() -> None:
    body = {
        "command": " ".join(["python -m benchmarks.policy.decision_time", *sys.argv[1:]]),
        "compiled": not dynaserve.__file__.endswith(".py"),
        "decision": decisions(),
        "replicas, dynaserve, 64 instances": replicas(len(os.sched_getaffinity(0))),
        "batcher step, 256 running, 64 waiting": batcher_step(),
    }
    show(body)


if __name__ == "__main__":
    main()
