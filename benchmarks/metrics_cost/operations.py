"""What each recording costs, in this process: CPU time of calls as the services make them."""

import time
from collections.abc import Callable
from functools import partial

from services.gateway.metrics import RequestMeter
from services.global_sched import metrics as scheduler
from services.gpu_instance import metrics as instance
from services.gpu_instance.engine.seam import EngineLoad
from services.kv_transfer import metrics as coordinator
from services.kv_transfer.handoff import Close
from shared.actor import Actor
from shared.bus_memory import MemoryBus
from shared.bus_metrics import LagMeter
from shared.schemas.events import RequestRecord
from shared.schemas.place import Plan, Prediction
from shared.schemas.request import Slo
from shared.schemas.tokens import SegmentTiming

CALLS = 4000

PLAN = Plan(
    request_id="r",
    epoch=1,
    scheduler_id="s",
    policy="dynaserve",
    alpha_id="a",
    beta_id="b",
    cut=499,
    reason="cut is cheapest",
    predicted_output_tokens=200.0,
    chosen=Prediction(ttft_s=0.1, tbt_s=0.02, cost=0.1),
)


def _timing(role: str, received_s: float, started_s: float, ended_s: float) -> SegmentTiming:
    return SegmentTiming.model_validate(
        {
            "instance_id": "a",
            "request_id": "r",
            "epoch": 1,
            "role": role,
            "received_s": received_s,
            "started_s": started_s,
            "ended_s": ended_s,
        }
    )


RECORD = RequestRecord(
    request_id="r",
    gateway_id="g",
    arrival_at_s=0.0,
    num_prompt_tokens=500,
    num_output_tokens=200,
    num_cached_tokens=0,
    slo=Slo(ttft_s=1.0, tbt_s=0.1, name="chat"),
    outcome="length",
    place_s=0.002,
    ttft_s=0.12,
    tbt_p99_s=0.03,
    tpot_s=0.02,
    e2e_s=4.1,
    slo_met=True,
    epochs=1,
    plan=PLAN,
    segments=[_timing("alpha", 0.003, 0.01, 0.09), _timing("beta", 0.003, 0.1, 4.1)],
)
CLOSE = Close(
    "h", 1, "a", "b", "adopted", "", 499, 10**8, 0.01, 0.002, 0.0, 0.05, 0.09, 0.1, 0.2, ()
)


def loads() -> list[EngineLoad]:
    """Two that differ by a step, so that each update is a sample."""
    return [
        EngineLoad(
            num_running=9,
            num_waiting=1,
            num_decodes=8,
            context_sum=4000,
            outstanding_prefill_tokens=100,
            free_blocks=500,
            num_blocks=1000,
            max_num_batched_tokens=8192,
            step_s=0.02,
            predicted_step_s=0.019,
            slo_headroom=0.8,
            num_steps=number,
        )
        for number in (1, 2)
    ]


def handoff() -> None:
    coordinator.open_now.add(1)
    coordinator.closed(CLOSE, "shm")


def segment() -> None:
    instance.alive.add(1)
    instance.alive.add(-1)
    instance.segments.add(1, {"role": "beta", "ended": "length"})


def cost_us(call: Callable[[], object], calls: int = CALLS) -> float:
    """CPU microseconds of a call, the best of five rounds: others use this machine too."""
    rounds = []
    for _ in range(5):
        started_s = time.thread_time()
        for _ in range(calls):
            call()
        rounds.append((time.thread_time() - started_s) / calls * 1e6)
    return min(rounds)


def measure() -> dict[str, float]:
    """Microseconds by operation; metrics must be collected in this process."""
    meter = instance.LoadMeter(Actor("bench", MemoryBus()))
    first, second = loads()

    def load_report() -> None:
        meter.update(first)
        meter.update(second)

    return {
        "request_over": cost_us(partial(RequestMeter("demo").over, RECORD)),
        "message_lag": cost_us(partial(LagMeter("tokens").observe, 0.001), 10 * CALLS),
        "load_report": cost_us(load_report) / 2,
        "segment": cost_us(segment),
        "placement": cost_us(partial(scheduler.placed, PLAN, 500)),
        "handoff": cost_us(handoff),
    }
