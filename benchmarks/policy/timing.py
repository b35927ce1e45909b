"""Times of many short calls, and what a benchmark leaves behind."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np


def timed(
    call: Callable[[int], object], number: int, between: Callable[[int], object] | None = None
) -> dict[str, float]:
    """Microseconds of ``call(0)`` to ``call(number - 1)`` by wall clock and CPU; ``between`` runs
    before each and is not counted."""
    wall, cpu = np.empty(number), np.empty(number)
    for index in range(number):
        if between is not None:
            between(index)
        start, start_cpu = time.perf_counter(), time.thread_time()
        call(index)
        wall[index], cpu[index] = time.perf_counter() - start, time.thread_time() - start_cpu
    p50, p99 = np.percentile(1e6 * wall, [50, 99])
    return {
        "p50_us": round(float(p50), 1),
        "p99_us": round(float(p99), 1),
        "p99_cpu_us": round(float(np.percentile(1e6 * cpu, 99)), 1),
        "per_s_one_core": round(number / float(cpu.sum())),
    }


def show(body: Mapping[str, object]) -> None:
    """Print the figures; write them to the file named on the command line, if one is."""
    text = json.dumps(body, indent=1)
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n")
