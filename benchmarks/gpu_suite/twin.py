"""The simulator against the GPUs: the very requests of each cell, simulated with what was measured.

python -m benchmarks.gpu_suite.twin FOLDER [--json FILE]

FOLDER holds what a run of the suite wrote: ``goodput_*.json``, ``timeline.json`` (what client,
gateway and bus add to a first token) and, if it was made, ``profile.json`` (the latency model
fitted in that run; else the shipped one). Nothing is adjusted after.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite.timeline import PHASES
from benchmarks.twin.compare import NORMAL_MEDIAN, errors
from dynaserve.bench.load import make_schedule
from dynaserve.bench.settings import BenchSettings, read_settings
from dynaserve.sim.report import report
from dynaserve.sim.simulator import SimSettings, Simulator
from dynaserve.sim.traces import SimRequest
from services.global_sched.policy import POLICIES
from shared.latency_model import LatencyProfile

KV_BYTES_PER_TOKEN = 192 * 1024
KV_TOKENS = 80 * 2**30 // KV_BYTES_PER_TOKEN
MAX_MODEL_LEN, MAX_NUM_SEQS, MAX_BATCHED_TOKENS = 32_768, 256, 8192
LINK_BYTES_PER_S = 300e9
"""Of the suite's engines and links (see GPU_FLAGS and gpu_transfer.json)."""


def requests_of(settings: BenchSettings, repeat: int) -> tuple[SimRequest, ...]:
    """What the bench sent: the same seed makes the same arrivals and lengths."""
    changes = {"max_model_len": MAX_MODEL_LEN, "seed": settings.seed + repeat}
    load = settings.model_copy(update=changes).load()
    return make_schedule(load, settings.request_rate, settings.until_s).requests


def twin_settings(
    profile: LatencyProfile,
    settings: BenchSettings,
    instances: int,
    first_token_ms: float,
    system: str,
    tbt_ms: int,
) -> SimSettings:
    slo = settings.slos.default
    return SimSettings(
        profile.model,
        instances=instances,
        split_roles=system.startswith("disaggregated"),
        batcher=system.partition("/")[2],
        slo_tbt_s=1e-3 * tbt_ms,
        slo_ttft_s=slo.ttft_s,
        slo_ttft_s_per_token=slo.ttft_s_per_token,
        kv_tokens=KV_TOKENS,
        kv_bytes_per_token=KV_BYTES_PER_TOKEN,
        link_bytes_per_s=LINK_BYTES_PER_S,
        bus_latency_s=1e-3 * first_token_ms,
        max_num_batched_tokens=MAX_BATCHED_TOKENS,
        max_num_seqs=MAX_NUM_SEQS,
        max_tokens=MAX_MODEL_LEN,
        step_noise=profile.error.p50 / NORMAL_MEDIAN,
        warmup_s=settings.warmup_s,
        measure_until_s=settings.until_s,
    )


def compared(
    document: Mapping[str, Any], profile: LatencyProfile, first_token_ms: float
) -> Iterator[dict[str, Any]]:
    """One entry a system and objective: real, twin, errors."""
    settings, instances = read_settings(document["bench"]), sum(document["devices"].values())
    for row in document["systems"]:
        policy = row["system"].partition("/")[0].partition(":")[0]
        for tbt_ms, real in row["by_tbt_ms"].items():
            twin = twin_settings(
                profile, settings, instances, first_token_ms, row["system"], int(tbt_ms)
            )
            outcome = Simulator(twin, POLICIES[policy]()).run(requests_of(settings, row["repeat"]))
            figures = dict(report(outcome, twin, settings.duration_s))
            yield {"system": row["system"], "tbt_ms": int(tbt_ms), **errors(real, figures)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    fitted = given.folder / "profile.json"
    profile = LatencyProfile.load(fitted) if fitted.exists() else LatencyProfile.load()
    timeline = json.loads((given.folder / "timeline.json").read_text())
    first_token_ms = sum(timeline[name] for name in PHASES if name != "engine_and_back_ms")
    bodies = {
        path.stem.removeprefix("goodput_"): json.loads(path.read_text())
        for path in sorted(given.folder.glob("goodput_*.json"))
    }
    cells = {
        name: list(compared(body, profile, first_token_ms))
        for name, body in bodies.items()
        if "cell" in body
    }
    command = " ".join(["python", "-m", "benchmarks.gpu_suite.twin", *sys.argv[1:]])
    body = {"command": command, "cells": cells}
    for name, entries in cells.items():
        for each in entries:
            print(
                f"{name:14} {each['system']:24} {each['tbt_ms']:4} ms: in SLO "
                f"{each['real']['attainment']:.2f} real {each['twin']['attainment']:.2f} twin, "
                f"TTFT P50 {each['error']['ttft_p50_ms']:+.0%}, "
                f"TBT P99 {each['error']['tbt_p99_ms']:+.0%}"
            )
    if given.json:
        given.json.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
