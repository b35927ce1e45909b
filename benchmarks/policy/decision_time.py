"""Time of one decision of the scheduler, and of one plan of the batcher, on one core.

python benchmarks/policy/decision_time.py [FILE.json]
"""

from __future__ import annotations

import random
import sys

from benchmarks.policy.timing import show, timed
from services.global_sched.policy import POLICIES, dynaserve
from services.global_sched.policy.views import (
    InstanceView,
    LengthQuantiles,
    PoolView,
    RequestView,
)
from services.gpu_instance.batcher import Batcher, PromptView, StepLoad, prompt_rank
from shared.latency_model import LatencyProfile, StepShape

MODEL = LatencyProfile.load().model
DRAW = random.Random(0)


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


def decisions() -> dict[str, dict[str, float]]:
    found = {}
    for name, make in POLICIES.items():
        for instances in (2, 8, 64):
            policy, views = make(), [pool(instances) for _ in range(20)]
            asked = [request(number) for number in range(500)]

            def place(i: int, policy=policy, views=views, asked=asked) -> object:  # type: ignore[no-untyped-def]
                return policy.place(asked[i % 500], views[i % 20])

            for number in range(50):
                place(number)
            found[f"{name}, {instances} instances"] = timed(place, 2000)
    return found


def batcher_step(running: int = 256, waiting: int = 64) -> dict[str, float]:
    """A plan with the work around it: the minimum slack, ranking prompts, learning the step."""
    batcher = Batcher(MODEL)
    slacks = [DRAW.uniform(20.0, 25.0) for _ in range(running)]
    prompts = [PromptView(0.0, DRAW.uniform(0, 3), DRAW.randint(1, 4000)) for _ in range(waiting)]

    def step(_: int) -> object:
        speed = batcher.prompt_speed(running, 300 * running, 25.0)
        ranked = sorted(prompts, key=lambda prompt: prompt_rank(prompt, 0.5, speed))
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
        "command": " ".join(sys.argv),
        "compiled": not dynaserve.__file__.endswith(".py"),
        "decision": decisions(),
        "batcher step, 256 running, 64 waiting": batcher_step(),
    }
    show(body)


if __name__ == "__main__":
    main()
