"""What the processor of this host is called."""

import os
import platform
from pathlib import Path


def cpu_name() -> str:
    """As the kernel tells it, e.g. ``Intel(R) Xeon(R) Platinum 8481C``."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
