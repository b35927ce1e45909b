"""Results as tables to read and as JSON to keep."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypedDict

from pydantic import JsonValue
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dynaserve.bench.figures import METRICS, STATISTICS, Figures
from dynaserve.bench.observation import Observation
from dynaserve.bench.provenance import Provenance
from dynaserve.bench.run import BenchResult, Run, SystemRun
from dynaserve.bench.systems import Ratio, ratios

WORDS = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2el": "E2EL",
    "tbt_p99_of_request": "P99 TBT of each request",
}


class Row(TypedDict):
    """One system over all repeats: means, and ratios to the first system."""

    system: str
    repeats: int
    values: dict[str, float]
    ratios: dict[str, dict[str, float] | None]


COMPARED: dict[str, tuple[str, Callable[[SystemRun], float]]] = {
    "capacity_rps": ("cap. /s", lambda s: _or_nan(s.capacity_rps)),
    "attainment": ("in SLO", lambda s: s.at.figures["attainment"]),
    "goodput_rps": ("good /s", lambda s: s.at.figures["goodput_rps"]),
    "goodput_output_tokens_s": (
        "good tok/s",
        lambda s: s.at.figures["goodput_output_tokens_s"],
    ),
    "ttft_p50_ms": ("TTFT P50", lambda s: s.at.figures["ttft_p50_ms"]),
    "ttft_p99_ms": ("TTFT P99", lambda s: s.at.figures["ttft_p99_ms"]),
    "mean_tpot_ms": ("TPOT", lambda s: s.at.figures["times"]["mean_tpot_ms"]),
    "tbt_p99_ms": ("TBT P99", lambda s: s.at.figures["tbt_p99_ms"]),
    "lost": (
        "lost",
        lambda s: float(s.at.figures["refused"] + s.at.figures["failed"]),
    ),
}


def rows(result: BenchResult) -> list[Row]:
    """One row a system, in the order they were named."""
    by_system: dict[str, list[SystemRun]] = {}
    for each in result.results:
        by_system.setdefault(each.system, []).append(each)
    values = {
        key: {name: [read(one) for one in of] for name, of in by_system.items()}
        for key, (_, read) in COMPARED.items()
        if key != "capacity_rps" or result.settings.ramp
    }
    against = {key: ratios(of_key) for key, of_key in values.items()}
    return [
        Row(
            system=name,
            repeats=len(of),
            values={key: _mean(of_key[name]) for key, of_key in values.items()},
            ratios={key: _ratio(of_key[name]) for key, of_key in against.items()},
        )
        for name, of in by_system.items()
    ]


def compared(result: BenchResult) -> Table:
    """One table: figures of each system, ratio to the first beneath, spread over repeats."""
    found = rows(result)
    table = Table(
        title="Systems; ratios to the first; times in ms", title_justify="left", padding=(0, 0)
    )
    table.add_column("system", no_wrap=True)
    keys = [key for key in COMPARED if key in found[0]["values"]]
    for key in keys:
        table.add_column(COMPARED[key][0], justify="right")
    for row in found:
        table.add_row(row["system"], *(_cell(row, key) for key in keys))
    return table


def _cell(row: Row, key: str) -> Text:
    text = Text(_number(row["values"][key]))
    ratio = row["ratios"][key]
    if ratio is not None:
        spread = ratio["highest"] - ratio["lowest"]
        text.append(f"\n{ratio['mean']:.2f}x", "bold")
        if spread > 0:
            text.append(f" ({ratio['lowest']:.2f}-{ratio['highest']:.2f})", "dim")
    return text


def statistics_table(found: Figures) -> Table:
    table = Table("ms", *STATISTICS, title_justify="left")
    for metric in METRICS:
        table.add_row(
            WORDS[metric],
            *(_number(found["times"][f"{statistic}_{metric}_ms"]) for statistic in STATISTICS),
        )
    return table


def one_run(run: Run) -> RenderableType:
    """All figures of a run that was not compared."""
    found, client = run.figures, run.client
    lines = [
        f"requests {found['requests']}: completed {found['completed']}, refused {found['refused']}"
        f", failed {found['failed']}, unfinished {found['unfinished']}",
        f"throughput {found['request_throughput']:.2f} requests/s, "
        f"{found['output_throughput']:.1f} output tokens/s, "
        f"{found['total_token_throughput']:.1f} tokens/s in all",
        f"goodput {found['goodput_rps']:.2f} requests/s, "
        f"{found['goodput_output_tokens_s']:.1f} output tokens/s",
        f"in SLO {found['attainment']:.1%} (TTFT {found['ttft_attainment']:.1%}, "
        f"TBT {found['tbt_attainment']:.1%})",
        *(
            f"  {name}: {each['attainment']:.1%} of {each['requests']} (TTFT "
            f"{each['ttft_attainment']:.1%}, TBT {each['tbt_attainment']:.1%})"
            for name, each in found["classes"].items()
            if len(found["classes"]) > 1
        ),
        f"client: {client.cpu_share:.0%} of a core, {client.cpu_us_per_chunk:.0f} us per chunk, "
        f"event loop late {client.loop_lag_p99_ms:.1f} ms (P99), requests late "
        f"{client.late_p99_ms:.1f} ms (P99)",
    ]
    if found["inexact"]:
        lines.append(
            f"{found['inexact']} requests: the server did not say how many tokens a chunk holds; "
            "TBT and TPOT are those of chunks"
        )
    lines += [f"failed {count}x: {what}" for what, count in found["failures"].items()]
    return Group(Text("\n".join(lines)), statistics_table(found))


def ramp_table(result: SystemRun) -> Table:
    table = Table("rate /s", "in SLO", "goodput /s", "", title=f"Ramp of {result.system}")
    for run in sorted(result.runs, key=lambda run: run.figures["offered_rps"]):
        table.add_row(
            _number(run.figures["offered_rps"]),
            f"{run.figures['attainment']:.1%}",
            _number(run.figures["goodput_rps"]),
            "stopped early" if run.cut_short else "",
        )
    return table


def report(result: BenchResult) -> list[RenderableType]:
    """Everything to print at the end."""
    shown: list[RenderableType] = []
    if result.settings.ramp:
        shown += [ramp_table(each) for each in result.results]
    if len(result.results) > 1:
        return [*shown, compared(result)]
    only = result.results[0]
    shown.append(one_run(only.at))
    if only.capacity_rps is not None:
        shown.append(Text(f"capacity {only.capacity_rps:.3g} requests/s", "bold"))
    return shown


def to_json(result: BenchResult, source: Provenance) -> str:
    """All of it. A single result's figures stand at the top too, as in `dynaserve simulate`."""
    settings = result.settings.model_dump(mode="json", exclude={"api_key"})
    document = {
        **source,
        "endpoint": asdict(result.endpoint),
        "settings": settings,
        "prompt_seed": result.prompt_seed,
        "vocab_size": result.vocab_size,
        "max_model_len": result.max_model_len,
        "trustworthy": not any(run.distrust for each in result.results for run in each.runs),
        **_top_level(result),
        "systems": rows(result),
        "results": [_result(each, result.settings.save_detailed) for each in result.results],
    }
    return json.dumps(_without_nan(document), indent=2)


def _top_level(result: BenchResult) -> dict[str, object]:
    if len(result.results) > 1:
        return {}
    only = result.results[0]
    capacity = {"capacity_rps": only.capacity_rps} if result.settings.ramp else {}
    return {**only.at.figures, **capacity}


def _result(each: SystemRun, detailed: bool) -> dict[str, object]:
    return {
        "system": each.system,
        "repeat": each.repeat,
        "capacity_rps": each.capacity_rps,
        "runs": [_run(run, detailed) for run in each.runs],
    }


def _run(run: Run, detailed: bool) -> dict[str, object]:
    found: dict[str, object] = {
        "rate_rps": run.rate_rps,
        "cut_short": run.cut_short,
        "capped_requests": run.schedule.capped_requests,
        "capped_tokens": run.schedule.capped_tokens,
        "figures": run.figures,
        "client": asdict(run.client),
        "client_bottleneck": list(run.distrust),
    }
    if detailed:
        found["requests"] = [detail(seen) for seen in run.observations if seen.measured]
    return found


def detail(seen: Observation) -> dict[str, object]:
    """One request; times in ms, ``at_s`` in the schedule."""
    return {
        "request_id": seen.request.request_id,
        "class": seen.request.traffic_class,
        "at_s": seen.request.arrival_s,
        "prompt_tokens": seen.request.prompt_tokens,
        "output_tokens": seen.tokens,
        "outcome": seen.outcome,
        "detail": seen.detail,
        "late_ms": 1e3 * seen.late_s,
        "ttft_ms": 1e3 * seen.ttft_s,
        "tpot_ms": 1e3 * seen.tpot_s,
        "tbt_p99_ms": 1e3 * seen.tbt_p99_s,
        "e2el_ms": 1e3 * seen.e2el_s,
    }


def _without_nan(value: object) -> JsonValue:
    """NaN and infinity are no JSON: null stands for 'there is no such figure'."""
    if isinstance(value, dict):
        return {str(key): _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"{type(value).__name__} in a report")


def _ratio(ratio: Ratio | None) -> dict[str, float] | None:
    return asdict(ratio) if ratio is not None else None


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
