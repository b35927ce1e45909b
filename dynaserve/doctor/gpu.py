"""GPUs and whether they reach each other's memory, as nvidia-smi tells it."""

import subprocess
from dataclasses import dataclass

from dynaserve.doctor.finding import Finding, fail, ok, warn

QUERY = ("--query-gpu=index,name,memory.total,memory.used", "--format=csv,noheader,nounits")
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Gpu:
    """One device; memory in MiB."""

    index: int
    name: str
    total_mib: int
    used_mib: int


@dataclass(frozen=True)
class GpuReport:
    """What nvidia-smi says; ``error`` when it is there and fails, nothing at all without it."""

    gpus: tuple[Gpu, ...] = ()
    unreachable_pairs: tuple[tuple[int, int], ...] = ()
    error: str | None = None


def read_gpus() -> GpuReport:
    """Ask nvidia-smi; a host without it has no GPU."""
    try:
        gpus = parse_gpus(ask("nvidia-smi", *QUERY))
        pairs = parse_peers(ask("nvidia-smi", "topo", "-p2p", "r")) if len(gpus) > 1 else ()
    except FileNotFoundError:
        return GpuReport()
    except (subprocess.SubprocessError, ValueError) as error:
        return GpuReport(error=str(error))
    return GpuReport(gpus, pairs)


def ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return done.stdout


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Read ``index, name, total, used`` lines."""
    gpus = []
    for line in text.splitlines():
        index, name, total, used = (field.strip() for field in line.split(","))
        gpus.append(Gpu(int(index), name, int(total), int(used)))
    return tuple(gpus)


def parse_peers(matrix: str) -> tuple[tuple[int, int], ...]:
    """The pairs of the ``topo -p2p`` matrix that are neither themselves (X) nor OK."""
    pairs = []
    for line in matrix.splitlines():
        row, *cells = line.split() or [""]
        # The head of the matrix begins with a name too, but has names where rows have states.
        if not row.startswith("GPU") or any(cell.startswith("GPU") for cell in cells):
            continue
        one = int(row.removeprefix("GPU"))
        pairs += [
            (one, other)
            for other, state in enumerate(cells)
            if one < other and state not in ("X", "OK")
        ]
    return tuple(pairs)


def judge_gpus(report: GpuReport) -> list[Finding]:
    """Findings about the devices and about the ways between them."""
    if report.error is not None:
        return [
            fail(
                "gpu",
                f"nvidia-smi fails: {report.error}",
                "mend the driver (`nvidia-smi` must answer)",
            )
        ]
    if not report.gpus:
        return [ok("gpu", "none; engines run on the CPU")]
    said = ", ".join(
        f"{gpu.index}: {gpu.name} {gpu.used_mib}/{gpu.total_mib} MiB used" for gpu in report.gpus
    )
    return [ok("gpu", said), *judge_peers(report)]


def judge_peers(report: GpuReport) -> list[Finding]:
    if len(report.gpus) < 2:
        return []
    if not report.unreachable_pairs:
        return [ok("peer access", "every pair of GPUs")]
    pairs = ", ".join(f"{one}-{other}" for one, other in report.unreachable_pairs)
    return [
        warn(
            "peer access",
            f"not between GPUs {pairs}: KV takes the way through host memory",
            "check `nvidia-smi topo -p2p r` and the IOMMU and ACS settings of the host",
        )
    ]
