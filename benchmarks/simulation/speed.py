"""Simulated engine steps per second of one core (CPU time, the best of seven runs).

python benchmarks/simulation/speed.py [FILE.json]

In build/compiled (see scripts/compile) it measures the compiled modules.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from dynaserve.sim import simulator
from dynaserve.sim.simulator import SimSettings, Simulator
from dynaserve.sim.traces import poisson_arrivals, synthetic_trace
from services.global_sched.policy import POLICIES
from shared.latency_model import LatencyProfile

RUNS = 7


def steps_per_s(policy: str, instances: int, rate: float, slo_tbt_s: float) -> dict[str, float]:
    model = LatencyProfile.load().model
    settings = SimSettings(model, instances, slo_tbt_s=slo_tbt_s)
    requests = poisson_arrivals(synthetic_trace(1000, 200), rate * instances, 120.0)
    spent_s = []
    for _ in range(RUNS):
        start = time.process_time()
        outcome = Simulator(settings, POLICIES[policy]()).run(requests)
        spent_s.append(time.process_time() - start)
    return {"steps": outcome.steps, "steps_per_s": round(outcome.steps / min(spent_s))}


def main() -> None:
    compiled = not simulator.__file__.endswith(".py")
    command = " ".join(["python -m benchmarks.simulation.speed", *sys.argv[1:]])
    body = {"command": command, "compiled": compiled} | {
        f"{policy}, {instances} instances, {rate} requests/s each, TBT {slo_tbt_s * 1e3:.0f} ms": (
            steps_per_s(policy, instances, rate, slo_tbt_s)
        )
        for policy in ("colocated", "dynaserve")
        for instances, rate, slo_tbt_s in ((2, 5.0, 0.1), (2, 8.0, 0.025), (8, 8.0, 0.025))
    }
    text = json.dumps(body, indent=1)
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n")


if __name__ == "__main__":
    main()
