"""Capacity of every policy on every load, by simulation; results as JSON and a markdown table.

    python benchmarks/simulation/sweep.py run --traces DIR --instances 2 --out FILE.json
    python benchmarks/simulation/sweep.py table FILE.json ... --out simulation.md

Loads: the four traces with Poisson arrivals and their lengths in a seeded shuffle (a run covers
only part of a trace, and their beginnings are not typical of them), and a hybrid whose 15 s windows
offer the same GPU work each ("of three": without reasoning). SLO: TTFT 1 s + 0.2 ms per prompt
token, P99 of the gaps between a request's tokens within the TBT SLO. Capacity: the highest rate at
which 90 % of requests meet both. TTFT is compared at 70 % of the capacity of the best other
configuration, all at that same rate, as the mean over four patterns of arrivals: the P99 of one is
the mark of some twenty requests.
"""

from __future__ import annotations

import json
import random
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from dynaserve.sim.bound import bound_rps, equal_work_shares
from dynaserve.sim.capacity import Scenario, find_capacity, simulate_rate
from dynaserve.sim.simulator import SimSettings
from dynaserve.sim.traces import SimRequest, Trace, hybrid_arrivals, poisson_arrivals, read_trace
from services.global_sched.policy import POLICIES
from shared.latency_model import DEFAULT_PROFILE, LatencyModel, LatencyProfile

TRACES = {
    "code": "azure2023_code.csv.gz",
    "conv": "azure2023_conv.csv.gz",
    "reasoning": "servegen_reasoning_20min.csv.gz",
    "summarisation": "lengths_arxiv_summarization.csv.gz",
}
OTHERS = {
    "static 8192": ("colocated", "static:8192"),
    "static 2048": ("colocated", "static:2048"),
    "static 1024": ("colocated", "static:1024"),
    "static 512": ("colocated", "static:512"),
    "slo": ("colocated", "slo"),
    "disagg": ("disaggregated", "static:8192"),
    "disagg slo": ("disaggregated", "slo"),
}
OURS = "dynaserve"
PATTERNS = range(4)
"""Seeds of the arrivals at 70 %; capacities are of the first."""
Arrivals = Callable[..., list[SimRequest]]
"""(rate, until_s, seed=0) -> requests"""
CONFIGURATIONS = OTHERS | {OURS: ("dynaserve", "slo")}


def shuffled(trace: Trace) -> Trace:
    rows = list(trace.rows)
    random.Random(0).shuffle(rows)
    return Trace(trace.name, tuple(rows))


def loads(
    folder: Path, model: LatencyModel, order: Callable[[Trace], Trace] = shuffled
) -> dict[str, Arrivals]:
    """Every load. The hybrids' windows offer the same work at the default SLO, in every cell."""
    traces = {name: order(read_trace(folder / file)) for name, file in TRACES.items()}
    arrivals: dict[str, Arrivals] = {
        name: partial(poisson_arrivals, trace) for name, trace in traces.items()
    }
    of_three = [trace for name, trace in traces.items() if name != "reasoning"]
    for name, kinds in (("hybrid", list(traces.values())), ("hybrid of three", of_three)):
        shares = equal_work_shares(kinds, SimSettings(model))
        arrivals[name] = partial(hybrid_arrivals, kinds, shares=shares)
    return arrivals


def scenario(name: str, load: str, arrivals: Arrivals, settings: SimSettings) -> Scenario:
    policy, batcher = CONFIGURATIONS[name]
    pool = SimSettings(
        settings.model,
        settings.instances,
        batcher,
        settings.slo_tbt_s,
        split_roles=policy == "disaggregated",
    )
    scale = 1.0 if settings.instances <= 2 else 0.3
    # Reasoning needs minutes to fill a pool: outputs of thousands of tokens.
    duration_s, warmup_s = (250.0, 100.0) if load == "reasoning" else (240.0, 20.0)
    warmup_s = warmup_s if load != "hybrid" else 60.0
    if load == "hybrid of three":  # whole cycles of its windows
        return Scenario(pool, POLICIES[policy], arrivals, 180.0 if scale == 1.0 else 90.0, 45.0)
    return Scenario(pool, POLICIES[policy], arrivals, scale * duration_s, warmup_s)


def cells(arguments: Namespace) -> Iterator[dict[str, Any]]:
    model = LatencyProfile.load(arguments.profile).model
    every = loads(arguments.traces, model)
    for load in arguments.loads or every:
        for slo_ms in arguments.slo_tbt_ms:
            settings = SimSettings(model, arguments.instances, slo_tbt_s=1e-3 * slo_ms)
            yield cell(load, every[load], settings)


def cell(load: str, arrivals: Arrivals, settings: SimSettings) -> dict[str, Any]:
    """Capacities of all configurations, then TTFT of all at one common rate."""
    capacities: dict[str, float] = {}
    for name in CONFIGURATIONS:
        capacities[name] = find_capacity(scenario(name, load, arrivals, settings))
        print(load, settings.slo_tbt_s, name, round(capacities[name], 2), file=sys.stderr)
    best_other = max(OTHERS, key=lambda name: capacities[name])
    rate = 0.7 * capacities[best_other]
    figures = {}
    for name in (best_other, OURS):
        figures[name] = at_rate(name, load, arrivals, settings, rate)
    ours = scenario(OURS, load, arrivals, settings)
    _, full = simulate_rate(ours, capacities[OURS])
    bound = bound_rps(arrivals(8.0 * settings.instances, ours.until_s), ours.settings)
    return {
        "load": load,
        "instances": settings.instances,
        "slo_tbt_ms": 1e3 * settings.slo_tbt_s,
        "capacity_rps": capacities,
        "bound_rps": bound,
        "bound_fraction": capacities[OURS] / bound,
        "best_other": best_other,
        "at_70_percent": {"rate_rps": rate, "patterns": len(PATTERNS)} | figures,
        "dynaserve_at_capacity": {key: full[key] for key in KEPT},  # type: ignore[literal-required]
    }


def at_rate(
    name: str, load: str, arrivals: Arrivals, settings: SimSettings, rate: float
) -> dict[str, Any]:
    """Means over the patterns of arrivals, and the P99 TTFT of each."""
    planned = [scenario(name, load, partial(arrivals, seed=seed), settings) for seed in PATTERNS]
    reports: list[dict[str, Any]] = [{**simulate_rate(each, rate)[1]} for each in planned]
    means = {key: fmean(report[key] for report in reports) for key in KEPT}
    return means | {"ttft_p99_ms_of_each": [report["ttft_p99_ms"] for report in reports]}


KEPT = ("attainment", "goodput_rps", "ttft_p50_ms", "ttft_p99_ms", "tbt_p99_ms", "cut_share")


def tell(body: Mapping[str, object], target: Path | None) -> None:
    """Print the JSON, and keep it where that is wanted."""
    text = json.dumps(body, indent=1)
    print(text)
    if target is not None:
        target.write_text(text + "\n")


def run(arguments: Namespace) -> None:
    body: dict[str, Any] = {"command": " ".join(sys.argv), "profile": arguments.profile.name}
    body["cells"] = []
    for result in cells(arguments):
        body["cells"].append(result)
        arguments.out.write_text(json.dumps(body, indent=1) + "\n")


def table(arguments: Namespace) -> None:
    found = [json.loads(path.read_text()) for path in arguments.files]
    everything = [one for body in found for one in body["cells"]]
    everything.sort(key=lambda one: (one["instances"], -one["slo_tbt_ms"], one["load"]))
    lines = ["# Capacity by simulation (requests/s)", "", (__doc__ or "").split("\n\n")[2], ""]
    lines += ["Made by `benchmarks/simulation/sweep.py` from:", ""]
    for path, body in zip(arguments.files, found, strict=True):
        lines.append(f"- `{path.name}`: `{body['command']}`")
    names = list(CONFIGURATIONS)
    lines += ["", "| inst. | load | TBT ms | " + " | ".join(names) + " | bound | of bound | "]
    lines[-1] += "/ best other | / disagg | bound / disagg | cut "
    lines[-1] += "| P99 TTFT ms at 70 %: best other | dynaserve |"
    lines.append("|---" * (len(names) + 11) + "|")
    lines += [row(one) for one in everything]
    lines += ["", NOTES, "", *ceilings(everything)]
    if arguments.shared_queue:
        lines += ["", *shared_queue(json.loads(arguments.shared_queue.read_text()))]
    if arguments.patterns:
        lines += ["", *patterns([json.loads(path.read_text()) for path in arguments.patterns])]
    if arguments.windows:
        lines += ["", *windows(json.loads(arguments.windows.read_text()))]
    if arguments.fluid:
        lines += [
            "",
            *fluid([json.loads(path.read_text()) for path in arguments.fluid], everything),
        ]
    arguments.out.write_text("\n".join(lines) + "\n")


MISSED = 0.1
"""Share of the requests that a capacity lets miss their SLO."""


def ceilings(everything: list[dict[str, Any]]) -> list[str]:
    """What the bound leaves of a lead over disaggregated serving."""
    lines = [
        "At 100 ms the lead over `disagg` is limited: if a tenth of the requests, like the others,",
        "vanished with their work, the pool could serve bound / 0.9. On conv with eight instances",
        "that is no 1.4 times `disagg`, which reaches 0.8 of the bound itself. The requests that",
        "miss are not like the others, so conv exceeds it by 1 %: on two instances their prompts",
        "hold 2,241 tokens on average, all have 1,157, and three of four of them end after the",
        "arrivals do. (Reasoning exceeds it too: see above.)",
        "",
        "| inst. | load | bound / 0.9 / disagg | reached |",
        "|---|---|---|---|",
    ]
    for one in everything:
        if one["slo_tbt_ms"] == 100.0:
            capacity = one["capacity_rps"]
            disagg, ceiling = capacity["disagg"], one["bound_rps"] / (1.0 - MISSED)
            ratios = [f"{rps / disagg:.2f}" for rps in (ceiling, capacity[OURS])]
            cells = [str(one["instances"]), one["load"], *ratios]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def shared_queue(body: dict[str, Any]) -> list[str]:
    """Table of `shared_queue.py`."""
    lines = [
        "Where every instance decodes, placing whole requests better can hardly shorten P99 TTFT:",
        "here it is if all prompts waited in one queue, from which instances take as a step",
        "begins, and if each were computed alone on an idle instance (ms at 70 %,",
        f"`{body['command']}`):",
        "",
        "| inst. | load | TBT ms | best other | dynaserve | shared queue | alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in body["cells"]:
        figures = [f"{value:.0f}" for value in one["ttft_p99_ms"].values()]
        cells = [str(one["instances"]), one["load"], f"{one['slo_tbt_ms']:.0f}", *figures]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def fluid(bodies: list[dict[str, Any]], everything: list[dict[str, Any]]) -> list[str]:
    """Table of `fluid.py`."""
    lines = [
        "If work flowed at 25 ms (`benchmarks/simulation/fluid.py`: one queue of prompts that all",
        "instances serve at once, nothing spent on those that are late), with decodes that stay",
        "where they started, spread or on the fullest instance with room for them, or that move:",
        "",
        "| inst. | load | slo | spread | slo / spread | dynaserve | fullest | dynaserve / fullest "
        "| moving | 1.15 slo / fullest |",
        "|---" * 10 + "|",
    ]
    for body in bodies:
        ideal = body["capacity_rps"]
        for one in everything:
            load, capacity = one["load"], one["capacity_rps"]
            here = (body["instances"], body["slo_tbt_ms"])
            if (one["instances"], one["slo_tbt_ms"]) != here or load not in ideal["moving"]:
                continue
            slo, ours = capacity["slo"], capacity[OURS]
            spread, fullest = ideal["spread"][load], ideal["fullest"][load]
            figures = [slo, spread, slo / spread, ours, fullest, ours / fullest]
            figures += [ideal["moving"][load], 1.15 * slo / fullest]
            cells = [str(body["instances"]), load, *(f"{value:.2f}" for value in figures)]
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", FLUID_NOTES]


def patterns(bodies: list[dict[str, Any]]) -> list[str]:
    """Table of `patterns.py`."""
    lines = [
        "`dynaserve` over `slo` for several patterns of arrivals, with the traces' lengths",
        "shuffled and in the order they were recorded, which is what `dynaserve simulate` takes",
        "(`benchmarks/simulation/patterns.py`). The ideals are those of the fluid below, for the",
        "first pattern, over its `slo`:",
        "",
        "| inst. | TBT ms | load | order | slo | dynaserve | ratios | mean | ideal, decodes stay "
        "| ideal, decodes move |",
        "|---" * 10 + "|",
    ]
    for body in bodies:
        for one in body["cells"]:
            capacity = one["capacity_rps"]
            rates = [f"{min(each):.1f} to {max(each):.1f}" for each in capacity.values()]
            ratios = " ".join(f"{ratio:.2f}" for ratio in one["ratio"])
            here = [str(body["instances"]), f"{body['slo_tbt_ms']:.0f}", one["load"], one["order"]]
            slo = capacity["slo"][0]
            ideals = [f"{one['fluid'][kind] / slo:.2f}" for kind in ("fullest", "moving")]
            cells = [*here, *rates, ratios, f"{one['mean']:.2f}", *ideals]
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", PATTERN_NOTES]


def windows(body: dict[str, Any]) -> list[str]:
    """Table of `windows.py`."""
    alone = ", ".join(f"{name} {one['ratio']:.2f}" for name, one in body["alone"].items())
    lines = [
        f"The lead of the hybrid of all four on {body['instances']} instances at "
        f"{body['slo_tbt_ms']:.0f} ms hangs on",
        "how long each kind of traffic lasts (`benchmarks/simulation/windows.py`, means over four",
        f"patterns). Alone the kinds have {alone};",
        "windows that left nothing to the next would give",
        f"{body['without_carry_over']:.2f}: on reasoning, a quarter of the work, either serves",
        "more than the bound, and no lead is to be had.",
        "",
        "| window s | slo | dynaserve | ratio |",
        "|---|---|---|---|",
    ]
    for one in body["hybrid"]:
        rates = [f"{min(each):.1f} to {max(each):.1f}" for each in one["capacity_rps"].values()]
        lines.append(f"| {one['window_s']:g} | {rates[0]} | {rates[1]} | {one['ratio']:.2f} |")
    return lines


NOTES = """`bound` is the rate at which the clairvoyant least GPU time of *all* requests fills the
pool. A capacity may exceed it: one request in ten may miss its SLO, the SLO batcher lets those
yield, and outputs of thousands of tokens (reasoning, up to 1.2 of the bound) end after the run's
arrivals do, so those cells compare policies but overstate a sustained rate. `disagg` runs the
engine's own batching, `disagg slo` the SLO batcher.

At 100 and 50 ms the step's base cost is less than a fifth of the SLO, so `dynaserve` lets every
instance decode and equals the colocated pool with the SLO batcher, in capacity and in TTFT (to 1 to
2 %, the precision of either; on reasoning at 100 ms it is ahead in TTFT). There gathering would win
a few per cent of capacity at 50 ms on some loads, lose as much on code with two instances, and
always cost TTFT below capacity (a prompt that ends on a holder waits for its step); that was
measured before late prompts were judged as they are now.

A prompt is late when the speed that the decodes leave it is too low. On an instance without decodes
it is judged by 0.35 of the speed, about what decodes would leave: where not all can be in time the
long ones yield, and early, wherever they are. Judged by the whole speed there, as before, those
that missed with `dynaserve` were less long, and most were computed while others waited: of 22.9
conversations a second on two instances the late ones had 1,588 prompt tokens, all had 1,150 (now
1,938 of 23.9; colocated 2,496 of 20.4), and 35 % of them ended after the arrivals did (now 71 %;
colocated 72 %). Colocated pools at 25 ms, whose instances nearly always decode, were judged so
already, and the change gave them next to nothing. With 0.3 `disagg slo` would lead `dynaserve` by 4
% on conversations on eight instances at 50 ms, where no decodes are gathered (P99 TTFT at 70 %
three times as long). The files of 50 and 100 ms are from before the change: it moves `disagg slo`
there, but neither `slo` nor `dynaserve` on two instances.

At 25 ms `dynaserve` gathers. The hybrid gains less than its parts: reasoning's decodes stay where
they started for half a minute. On two instances they fill the holder when summarisation comes, of
which then half misses; near capacity a few of them sit on the other instance too, which pays the
base cost of short steps for three decodes (at 14.37 requests/s for 29 % of the time, and 89 % of
the requests met their SLO; at 14.25 for 4 %, and 93 % did). Tried without gain: holders filled one
after the other rather than evenly, the more so the longer the output; more decodes that wait before
one more instance holds some. Planning holders to 0.97 rather than 0.93 gives up to 4 % of capacity
on eight instances, and costs 5 to 10 % of P99 TTFT below it.

P99 TTFT at 70 % is lower with `dynaserve` at 25 ms (on reasoning with two instances equal) since
ends of prompts lead: the last token of a prompt cut before it once waited on its holder for whole
prompts with earlier deadlines, 300 ms and more behind the control group's. That group, requests
that would be cut but are not, waits for a holder; it is 1 % of them, or P99 would be its alone.

Late ends of prompts lead too. When they yielded to all in time, their contexts filled the holders'
KV until decodes were preempted: at 24.5 conversations a second, then 7 % over capacity, two
instances met 56 % of the SLOs, with that change 83 %."""

PATTERN_NOTES = """With two instances the lead hangs on whether one can hold the decodes. The first
minutes of the recorded conversations have longer outputs: at 20 requests/s one holder is just too
few, and a second one, for however few decodes, loses a third of its prefill speed. There a pool of
two gains 8 % on conversations and 2 % on the hybrid. On eight instances, where one more holder is
an eighth of the pool, either order gives nearly the same leads.

Decodes that move to a holder as soon as it has room, at the price of one gap of 60 ms each, were
tried in the simulator for such loads: 0 to 2.5 % more, whether or not those of short outputs, which
the gap costs their SLO, moved too, and no more at no price at all; with decodes that spread again
while no prompts wait, the same. Holders planned fuller, never more than one holder, longer steps
without decodes, and other weights of the policy's costs (23 draws) stay within 2 % or lose."""

FLUID_NOTES = """This bounds nothing: it drops whoever is late, while engines let long prompts
yield, which is worth most on code. On the hybrid with two instances a lead of 1.15 over `slo`
would take 0.98 of the ideal whose decodes stay; `dynaserve` is at 0.93 of it. To know when each
decode will end ("soonest empty" in the files) gains that ideal nothing, to move decodes 5 % (8 %
on eight instances)."""


def row(one: dict[str, Any]) -> str:
    capacity = one["capacity_rps"]
    ours, best = capacity[OURS], capacity[one["best_other"]]
    at = one["at_70_percent"]
    values = [
        str(one["instances"]),
        one["load"],
        f"{one['slo_tbt_ms']:.0f}",
        *(f"{capacity[name]:.2f}" for name in CONFIGURATIONS),
        f"{one['bound_rps']:.2f}",
        f"{one['bound_fraction']:.2f}",
        f"{ours / best:.2f}",
        f"{ours / max(capacity['disagg'], 1e-9):.2f}",
        f"{one['bound_rps'] / max(capacity['disagg'], 1e-9):.2f}",
        f"{one['dynaserve_at_capacity']['cut_share']:.2f}",
        f"{at[one['best_other']]['ttft_p99_ms']:.0f}",
        f"{at[OURS]['ttft_p99_ms']:.0f}",
    ]
    return "| " + " | ".join(values) + " |"


def main() -> None:
    parser = ArgumentParser(description="Capacity of every policy on every load, by simulation.")
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("--traces", type=Path, required=True)
    runs.add_argument("--profile", type=Path, default=DEFAULT_PROFILE)
    runs.add_argument("--instances", type=int, default=2)
    runs.add_argument("--slo-tbt-ms", type=float, nargs="*", default=[100.0, 50.0, 25.0])
    runs.add_argument("--loads", nargs="*")
    runs.add_argument("--out", type=Path, required=True)
    runs.set_defaults(act=run)
    tables = verbs.add_parser("table")
    tables.add_argument("files", type=Path, nargs="+")
    tables.add_argument("--shared-queue", type=Path)
    tables.add_argument("--patterns", type=Path, nargs="*")
    tables.add_argument("--fluid", type=Path, nargs="*")
    tables.add_argument("--windows", type=Path)
    tables.add_argument("--out", type=Path, required=True)
    tables.set_defaults(act=table)
    arguments = parser.parse_args()
    arguments.act(arguments)


if __name__ == "__main__":
    main()
