"""Times of many short calls, and what a benchmark leaves behind."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Times(NamedTuple):
    """Seconds of each call, by wall clock and CPU."""

    wall: NDArray[np.float64]
    cpu: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Sequence[Times]) -> Times:
        return cls(
            np.concatenate([part.wall for part in parts]),
            np.concatenate([part.cpu for part in parts]),
        )


def clocked(
    call: Callable[[int], object], number: int, between: Callable[[int], object] | None = None
) -> Times:
    """Times of ``call(0)`` to ``call(number - 1)``; ``between`` runs before each and is not
    counted."""
    wall, cpu = np.empty(number), np.empty(number)
    for index in range(number):
        if between is not None:
            between(index)
        start, start_cpu = time.perf_counter(), time.thread_time()
        call(index)
        wall[index], cpu[index] = time.perf_counter() - start, time.thread_time() - start_cpu
    return Times(wall, cpu)


def told(times: Times) -> dict[str, float]:
    """Microseconds and calls a second."""
    p50, p99 = np.percentile(1e6 * times.wall, [50, 99])
    return {
        "p50_us": round(float(p50), 1),
        "p99_us": round(float(p99), 1),
        "p99_cpu_us": round(float(np.percentile(1e6 * times.cpu, 99)), 1),
        "per_s_one_core": round(len(times.cpu) / float(times.cpu.sum())),
    }


def timed(
    call: Callable[[int], object], number: int, between: Callable[[int], object] | None = None
) -> dict[str, float]:
    """`clocked` and `told`."""
    return told(clocked(call, number, between))


def show(body: Mapping[str, object]) -> None:
    """Print the figures; write them to the file named on the command line, if one is."""
    text = json.dumps(body, indent=1)
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n")
