"""The comparison as Markdown, from its JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = {
    "attainment": "in SLO",
    "goodput_rps": "goodput /s",
    "ttft_p50_ms": "TTFT P50 ms",
    "ttft_p99_ms": "TTFT P99 ms",
    "tbt_p99_ms": "TBT P99 ms",
    "lost": "lost",
}


def markdown(body: Mapping[str, Any]) -> str:
    """One table a load; in brackets the ratio to the first system of the same run."""
    settings = body["settings"]
    busy = ", ".join(f"{value:.1f}" for value in body["load_average"])
    lines = [
        "# Two real CPU instances, the demo model",
        "",
        f"`{body['command']}`",
        "",
        f"{body['host_cpu']}, {body['host_cores']} cores for engines, gateway, scheduler, bus and "
        f"client; load average at the end {busy}. Commit {body['git_commit']}.",
        f"TBT objective {settings['slo_tbt_ms']:g} ms at P99, TTFT {settings['slo_ttft_ms']:g} ms "
        f"+ {settings['slo_ttft_ms_per_token']:g} ms per prompt token, "
        f"{settings['request_rate']:g} requests/s for {settings['duration_s']:g} s, "
        f"{settings['repeats']} repeat(s).",
    ]
    for name, load in body["loads"].items():
        lines += ["", f"## {name}", "", *_table(load)]
    return "\n".join(lines) + "\n"


def _table(load: Mapping[str, Any]) -> list[str]:
    lines = [
        "| system | " + " | ".join(COLUMNS.values()) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for row in load["systems"]:
        cells = (_cell(row, key) for key in COLUMNS)
        lines.append(f"| `{row['system']}` | " + " | ".join(cells) + " |")
    doubted = sum(bool(run["distrust"]) for run in load["runs"])
    lines += [
        "",
        f"The client vouches for {len(load['runs']) - doubted} of {len(load['runs'])} runs.",
    ]
    return lines


def _cell(row: Mapping[str, Any], key: str) -> str:
    value, ratio = row["values"][key], row["ratios"].get(key)
    text = f"{value:.2f}" if key in ("attainment", "goodput_rps") else f"{value:.0f}"
    return f"{text} ({ratio['mean']:.2f}x)" if ratio and key != "lost" else text
