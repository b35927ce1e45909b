"""The GPU results as Markdown, made from their JSON: gpu.md and the block in the README.

python -m benchmarks.gpu_suite.table [--results benchmarks/results/gpu] [--out FILE] [--readme FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- made by benchmarks.gpu_suite.table -->", "<!-- end -->"
GOAL = 0.9
"""Share of the requests in SLO at a capacity."""
Json = dict[str, Any]


def goodput_rows(name: str, body: Json) -> Iterator[str]:
    """One row a system: share in SLO and TTFT/TBT under each objective."""
    flag = "--request-rate="
    rate = next(each.removeprefix(flag) for each in body["bench"] if each.startswith(flag))
    for row in body["systems"]:
        for tbt_ms, found in sorted(row["by_tbt_ms"].items(), key=lambda item: -int(item[0])):
            yield (
                f"| {name} | {float(rate):g} | {tbt_ms} | `{row['system']}` "
                f"| {found['attainment']:.2f} | {found['goodput_rps']:.1f} "
                f"| {found['ttft_p50_ms']:.0f} / {found['ttft_p99_ms']:.0f} "
                f"| {found['tbt_p99_ms']:.0f} | {found['requests']} |"
            )


def goodput(folder: Path, instances: int | None = None) -> list[str]:
    """All cells, or those that were run on so many."""
    lines = [
        "| load | requests/s | TBT SLO ms | system | in SLO | goodput /s | TTFT P50 / P99 ms "
        "| TBT P99 ms | requests |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for path in sorted(folder.glob("goodput_*.json")):
        body = json.loads(path.read_text())
        if "cell" in body and instances in (None, sum(body["devices"].values())):
            name = path.stem.removeprefix("goodput_").replace("_", " ")
            lines += goodput_rows(name, body)
    return lines


def whole_graphs(folder: Path) -> list[str]:
    """What one GPU does at a TBT objective that leaves no room for launches."""
    return [
        "One H200, half the rate, steps with prompts captured as whole CUDA graphs, which is how a "
        "pool with an objective below 40 ms starts its engines (`in parts`: as vLLM does by "
        "itself, on the same machine):",
        "",
        *goodput(folder / "whole_graphs"),
    ]


def capacities(folder: Path) -> list[str]:
    """The rates that systems held on one GPU, each climbing until it missed."""
    lines = [
        "One H200: the highest rate at which 90 % of the requests meet both objectives, each "
        "system on its own ramp of 12 s runs on one pool (precision 6 %; engines at 25 ms with "
        "whole graphs). `static:8192` is what `vllm serve` does by itself on this card.",
        "",
        "| load | TBT SLO ms | system | held /s | missed at /s | TTFT P50 / P99 ms "
        "| TBT P99 ms | requests |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for path in sorted((folder / "capacity").glob("*.json")):
        body = json.loads(path.read_text())
        tbt_ms = next(each for each in body["bench"] if each.startswith("--slo-tbt-ms="))
        load = f"{body['cell']['name']} | {tbt_ms.partition('=')[2]}"
        lines += [capacity_row(load, row) for row in body["systems"]]
    return lines


def capacity_row(load: str, row: Json) -> str:
    at, tried = row["at_capacity"], row["steps"]
    missed = min((each["rate_rps"] for each in tried if each["attainment"] < GOAL), default=inf)
    held = max((each["rate_rps"] for each in tried if each["rate_rps"] < missed), default=0.0)
    return (
        f"| {load} | `{row['system']}` | {held:.1f} | {missed:.1f} "
        f"| {at['ttft_p50_ms']:.0f} / {at['ttft_p99_ms']:.0f} | {at['tbt_p99_ms']:.0f} "
        f"| {at['requests']} |"
    )


def handoffs(body: Json) -> list[str]:
    lines = [
        "| prompt tokens | handoffs | exposed P50 / P99 ms | of TTFT | TTFT uncut / cut ms |",
        "|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {length} | {found['repeats']} "
        f"| {found['exposed_p50_ms']:.1f} / {found['exposed_p99_ms']:.1f} "
        f"| {found['exposed_share_of_ttft']:.1%} "
        f"| {found['ttft_whole_p50_ms']:.0f} / {found['ttft_cut_p50_ms']:.0f} |"
        for length, found in body["sizes"].items()
    ]
    beside = body["bystanders"]
    lines += [
        "",
        *(
            f"Cut 16 tokens behind a prompt of {length}: the gap at the cut is "
            f"{found['gap_at_cut_p50_ms']:.1f} ms at P50 and {found['gap_at_cut_p99_ms']:.1f} at "
            f"P99, the other gaps {found['other_gaps_p50_ms']:.1f} at P50."
            for length, found in body["streamed"].items()
        ),
        f"32 decodes beside {beside['handoffs']} arriving handoffs of 8k tokens: gaps "
        f"{beside['mean_ratio'] - 1:+.1%} in the mean, {beside['p50_ratio'] - 1:+.1%} at P50, "
        f"{beside['p99_ratio'] - 1:+.1%} at P99.",
    ]
    return lines


def overhead(body: Json) -> list[str]:
    shape = body["shape"]
    lines = [
        f"Prompts of {shape['prompt_tokens']} tokens, {shape['output_tokens']} tokens out, "
        f"{len(next(iter(body['rounds'].values())))} paired rounds; pool / plain vLLM, mean and "
        "standard error.",
        "",
        "| users | TTFT | TPOT | whole request | output tokens/s |",
        "|---:|---:|---:|---:|---:|",
    ]
    names = ("ttft_mean_ms", "tpot_mean_ms", "e2el_mean_ms", "output_tokens_s")
    for users, found in body["ratios"].items():
        cells = (f"{found[n]['mean']:.3f} ± {found[n]['standard_error']:.3f}" for n in names)
        lines.append(f"| {users} | " + " | ".join(cells) + " |")
    return lines


def page(folder: Path) -> str:
    """All of it."""

    def read(name: str) -> Json:
        body: Json = json.loads((folder / name).read_text())
        return body

    exact = read("certify_float32.json")
    first = read("timeline.json")
    noise = read("noise_bf16.json")
    parts = [
        "# Two H200, Qwen2.5-14B shape, bf16, dummy weights",
        "",
        "Made by `python -m benchmarks.gpu_suite.table` from `gpu/*.json`, which hold the "
        "commands. TTFT objective: 1 s + 0.2 ms per prompt token; TBT objective: P99 of each "
        "request's gaps.",
        "",
        "## Goodput",
        "",
        *goodput(folder),
        "",
        *whole_graphs(folder),
        "",
        "## Capacity",
        "",
        *capacities(folder),
        "",
        "## Handoffs over NCCL",
        "",
        *handoffs(read("handoffs.json")),
        "",
        "## One instance against plain `vllm serve` on the same GPU",
        "",
    ]
    for path in sorted(folder.glob("overhead_*.json")):
        parts += [*overhead(json.loads(path.read_text())), ""]
    parts += [
        f"One request of {first['prompt_tokens']} tokens at a time on an idle pool: to the gateway "
        f"{first['to_gateway_ms']:.1f} ms, placing {first['placing_ms']:.1f}, to the instance "
        f"{first['to_instance_ms']:.1f}, engine and back {first['engine_and_back_ms']:.1f}, to the "
        f"client {first['to_client_ms']:.1f}.",
        "",
        "## Exactness",
        "",
        f"`dynaserve certify` in float32 over NCCL, shared memory and TCP: {exact['cases']} cases, "
        f"{exact['mismatches']} different, {exact['void']} void; log-probabilities differ by at "
        f"most {exact['max_logprob_difference']:.0e} (uncut reruns: "
        f"{exact['noise_floor']['max_logprob_difference']:.0e}).",
        f"bf16, {noise['prompts']} prompts of {noise['prompt_tokens']} tokens: outputs equal to "
        f"the first uncut run: {noise['rerun']['equal_outputs']:.2f} of uncut reruns, "
        f"{noise['cut']['equal_outputs']:.2f} of cut ones ({noise['distinct_tokens']} distinct "
        "tokens in all: dummy weights repeat themselves).",
    ]
    return "\n".join(parts) + "\n"


def with_block(readme: str, block: str) -> str:
    """The README with what stands between the marks replaced. Raises ValueError without marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} ... {END} in the README")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/gpu"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.md"))
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    given = parser.parse_args()
    given.out.write_text(page(given.results))
    two = goodput(given.results, instances=2)
    tables = [*two, "", *whole_graphs(given.results), "", *capacities(given.results)]
    block = "\n".join(tables)
    given.readme.write_text(with_block(given.readme.read_text(), block))


if __name__ == "__main__":
    main()
