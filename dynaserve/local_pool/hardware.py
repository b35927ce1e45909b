"""What this machine offers, without importing torch: GPUs, cores, memory."""

import os
import shutil
import subprocess
from dataclasses import dataclass

import psutil

NVIDIA_SMI_TIMEOUT_S = 20.0
MAX_CPU_KV_GIB = 4
DEMO_CPU_KV_GIB = 1


@dataclass(frozen=True)
class Hardware:
    """GPUs visible to this process, CPU cores it may use, memory in GiB."""

    gpus: tuple[str, ...]
    num_cores: int
    memory_gib: float


def look() -> Hardware:
    """This machine, with ``CUDA_VISIBLE_DEVICES`` respected."""
    return Hardware(
        gpus=_gpus(),
        num_cores=len(os.sched_getaffinity(0)),
        memory_gib=psutil.virtual_memory().total / 2**30,
    )


def _gpus() -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(gpu for gpu in visible.split(",") if gpu and gpu != "-1")
    if shutil.which("nvidia-smi") is None:
        return ()
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_TIMEOUT_S,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return ()
    return tuple(line.strip() for line in listed.stdout.splitlines() if line.strip())


def cpu_environment(hardware: Hardware, num_instances: int, demo: bool) -> dict[str, str]:
    """vLLM's variables for engines that share a CPU; what the user has set stays."""
    most_gib = DEMO_CPU_KV_GIB if demo else MAX_CPU_KV_GIB
    kv_gib = min(most_gib, int(0.3 * hardware.memory_gib / num_instances))
    defaults = {
        "OMP_NUM_THREADS": str(max(1, hardware.num_cores // num_instances)),
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, kv_gib)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    return {name: value for name, value in defaults.items() if name not in os.environ}
