"""`dynaserve bench --compare` on real vLLM without a GPU: two instances of the demo model.

python -m benchmarks.compare_cpu [--json FILE] [--markdown FILE] [--request-rate R] ...

Lengths are those of the traces times --length-scale, objectives fit this CPU: a decode step takes
about 5 ms alone, a prefill token 0.07 ms. The static batchers stand to this engine as 8192, 2048
and 512 tokens stand to a GPU at 100 ms: whole prompts, half of them, small pieces.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from rich.console import Console

from benchmarks.compare_cpu.table import markdown
from dynaserve.bench.progress import Board
from dynaserve.bench.provenance import command_line, provenance
from dynaserve.bench.report import rows
from dynaserve.bench.run import BenchResult, bench
from dynaserve.bench.settings import read_settings
from dynaserve.local_pool import LocalPool, PoolSettings

TRACES = Path("benchmarks/traces")
CONV, CODE = TRACES / "azure2023_conv.csv.gz", TRACES / "azure2023_code.csv.gz"
SUMMARIES = TRACES / "lengths_arxiv_summarization.csv.gz"
LOADS = {
    "azure conv": ("--trace", str(CONV), "--arrivals", "poisson"),
    "hybrid": (
        *("--trace", str(CONV), "--trace", str(CODE), "--trace", str(SUMMARIES)),
        *("--window-s", "4"),
    ),
}
WARM_UP = (
    *("--trace", "synthetic:600:60", "--request-rate", "4", "--duration-s", "8"),
    *("--compare", "dynaserve/slo"),
)
SYSTEMS = (
    "dynaserve/slo",
    "colocated/slo",
    "colocated/static:2048",
    "colocated/static:512",
    "colocated/static:128",
    "disaggregated/slo",
)
POOL = "compare"


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    board = Board(Console(stderr=True))
    logs = Path(mkdtemp(prefix="dynaserve-compare-"))
    settings = PoolSettings(
        instances=2, port=arguments.port, pool=POOL, log_folder=logs, admission="queue"
    )  # as vLLM does, which refuses nothing
    loads = {}
    async with LocalPool(settings) as pool:
        where = ("--nats", pool.nats_url, "--pool", POOL)
        # Unmeasured: memory is touched, and the batchers learn this machine's latency model.
        await bench(read_settings([*where, *WARM_UP]), board)
        for name, flags in LOADS.items():
            told = read_settings([*where, *flags, *common_flags(arguments)])
            loads[name] = entry(await bench(told, board))
    body = provenance(["python", "-m", "benchmarks.compare_cpu", *command_line()[1:]])
    return {**body, "settings": {k: v for k, v in vars(arguments).items() if k not in FILES}} | {
        "loads": loads
    }


FILES = ("json", "markdown", "port")


def common_flags(arguments: argparse.Namespace) -> list[str]:
    return [
        *(part for system in SYSTEMS for part in ("--compare", system)),
        *("--length-scale", str(arguments.length_scale)),
        *("--request-rate", str(arguments.request_rate)),
        *("--duration-s", str(arguments.duration_s), "--warmup-s", "3"),
        *("--repeats", str(arguments.repeats)),
        *("--slo-ttft-ms", str(arguments.slo_ttft_ms)),
        *("--slo-ttft-ms-per-token", str(arguments.slo_ttft_ms_per_token)),
        *("--slo-tbt-ms", str(arguments.slo_tbt_ms)),
    ]


def entry(result: BenchResult) -> dict[str, Any]:
    """Rows of the table, every run's figures beneath, and why a run may not be trusted."""
    return {
        "systems": rows(result),
        "runs": [
            {
                "system": each.system,
                "repeat": each.repeat,
                "figures": each.at.figures,
                "distrust": list(each.at.distrust),
            }
            for each in result.results
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--request-rate", type=float, default=4.0)
    parser.add_argument("--duration-s", type=float, default=12.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--length-scale", type=float, default=0.8)
    parser.add_argument("--slo-ttft-ms", type=float, default=1000.0)
    parser.add_argument("--slo-ttft-ms-per-token", type=float, default=1.0)
    parser.add_argument("--slo-tbt-ms", type=float, default=30.0)
    parser.add_argument("--port", type=int, default=8451)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    body = asyncio.run(measure(arguments))
    text = json.dumps(body, indent=1)
    print(markdown(body))
    if arguments.json:
        arguments.json.write_text(text + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(body))


if __name__ == "__main__":
    main()
