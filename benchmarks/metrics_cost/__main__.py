"""What metrics cost: ``python -m benchmarks.metrics_cost [--json FILE]``.

A pool of simulated instances serves requests; each part's CPU time is read from the system, and how
often it recorded what from its own metrics. The cost of a recording is measured in this process.
The share is their product over the CPU time of the part: what throughput would gain without them.
"""

import argparse
import asyncio
import json
import re
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from benchmarks.metrics_cost.operations import measure
from dynaserve.local_pool import PoolSettings
from dynaserve.local_pool.background import BackgroundPool
from dynaserve.local_pool.observed import free_port
from shared.bus_metrics import SAMPLED
from shared.telemetry import collect_metrics

SCRAPE_S = 5.0
NUM_SCRAPES = 50
NUM_REQUESTS, CONCURRENCY, PROMPT, OUTPUT = 240, 24, 400, 200

RECORDINGS = {
    "gateway-0": {
        "request_over": ("dynaserve_gateway_requests_total", 1),
        "message_lag": ("dynaserve_bus_lag_seconds_count", SAMPLED),
    },
    "scheduler-0": {
        "placement": ("dynaserve_placements_total", 1),
        "message_lag": ("dynaserve_bus_lag_seconds_count", SAMPLED),
    },
    "kv-transfer-0": {"handoff": ("dynaserve_handoffs_total", 1)},
    "instance-0": {
        "segment": ("dynaserve_instance_segments_total", 1),
        "load_report": ("dynaserve_step_seconds_count", 1),
    },
}
"""Part -> operation -> (series that counts it, operations per count)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=None)
    file: Path | None = parser.parse_args().json
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder))
    collect_metrics("bench", "bench")
    report["cost_us"] = cost_us = measure()
    report["share_of_cpu"] = shares(report, cost_us)
    text = json.dumps(report, indent=2)
    print(text)
    if file is not None:
        file.write_text(text + "\n")


def run(folder: Path) -> dict[str, object]:
    """CPU seconds and number of recordings of each part over the load."""
    settings = PoolSettings(
        engine="simulated", instances=2, port=free_port(), pool="cost", log_folder=folder
    )
    with BackgroundPool(settings) as pool:
        asyncio.run(load(pool.url, 20))  # imports and first calls are not what is measured
        before, cpu_before, started_s = counted(folder), cpu_s(pool), time.monotonic()
        asyncio.run(load(pool.url, NUM_REQUESTS))
        took_s = time.monotonic() - started_s
        after, cpu_after = counted(folder), cpu_s(pool)
        scrapes = scrape_ms(folder, pool)
    return {
        "what": f"{NUM_REQUESTS} requests of {PROMPT} + {OUTPUT} tokens, half of them cut, "
        f"{CONCURRENCY} at once, 2 simulated instances; a scrape every {SCRAPE_S:.0f} s",
        "took_s": took_s,
        "requests_per_s": NUM_REQUESTS / took_s,
        "tokens_per_s": NUM_REQUESTS * OUTPUT / took_s,
        "cpu_s": {part: cpu_after[part] - cpu_before[part] for part in RECORDINGS},
        "scrape_ms": scrapes,
        "recordings": {
            part: {name: after[part][name] - before[part][name] for name in operations}
            for part, operations in RECORDINGS.items()
        },
    }


async def load(url: str, count: int) -> None:
    gate = asyncio.Semaphore(CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def one(number: int) -> None:
            cut = PROMPT - 1 if number % 2 else "never"
            body = {
                "model": "demo",
                "prompt": [300 + (number + n) % 500 for n in range(PROMPT)],
                "max_tokens": OUTPUT,
                "stream": True,
                "ignore_eos": True,
                "vllm_xargs": {"dynaserve_cut": cut},
            }
            async with gate, client.stream("POST", "/v1/completions", json=body) as answer:
                answer.raise_for_status()
                async for _ in answer.aiter_bytes():
                    pass

        await asyncio.gather(*(one(number) for number in range(count)))


def counted(folder: Path) -> dict[str, dict[str, float]]:
    """How often each part did what, from its metrics."""
    (file,) = folder.glob("targets/*.json")
    found: dict[str, dict[str, float]] = {}
    for group in json.loads(file.read_text()):
        part = group["labels"]["part"]
        text = httpx.get(f"http://{group['targets'][0]}/metrics").text
        found[part] = {
            name: times * _sum(text, series)
            for name, (series, times) in RECORDINGS.get(part, {}).items()
        }
    return found


def scrape_ms(folder: Path, pool: BackgroundPool) -> dict[str, float]:
    """CPU milliseconds of one scrape of each part, at rest."""
    (file,) = folder.glob("targets/*.json")
    cost_ms = {}
    for group in json.loads(file.read_text()):
        part, before = group["labels"]["part"], cpu_s(pool)
        for _ in range(NUM_SCRAPES):
            httpx.get(f"http://{group['targets'][0]}/metrics")
        cost_ms[part] = (cpu_s(pool)[part] - before[part]) / NUM_SCRAPES * 1e3
    return cost_ms


def _sum(text: str, series: str) -> float:
    lines = re.findall(rf"^{series}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for value in lines)


def cpu_s(pool: BackgroundPool) -> dict[str, float]:
    times = {part: psutil.Process(pid).cpu_times() for part, pid in pool.pids().items()}
    return {part: spent.user + spent.system for part, spent in times.items()}


def shares(report: dict[str, object], cost_us: dict[str, float]) -> dict[str, dict[str, float]]:
    """What metrics take from a part that is busy all the time, and from the whole pool.

    Recordings grow with the load: their share of the CPU time spent. Scrapes come at a fixed pace:
    their share of a core.
    """
    cpu, recordings, scrapes = report["cpu_s"], report["recordings"], report["scrape_ms"]
    assert isinstance(cpu, dict) and isinstance(recordings, dict) and isinstance(scrapes, dict)
    recording_s = {
        part: sum(cost_us[name] * times for name, times in done.items()) / 1e6
        for part, done in recordings.items()
    }
    result = {}
    for part in recordings:
        recording, scraping = recording_s[part] / cpu[part], scrapes[part] / 1e3 / SCRAPE_S
        result[part] = {"recording": recording, "scraping": scraping, "sum": recording + scraping}
    return {**result, "all parts": {"recording": sum(recording_s.values()) / sum(cpu.values())}}


if __name__ == "__main__":
    main()
