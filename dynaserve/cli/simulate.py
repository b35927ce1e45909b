"""``dynaserve simulate``: what a pool would do with a trace, without a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dynaserve.compiled import FLAG, INTERPRETED, go_on_compiled, is_wanted
from dynaserve.sim.bound import bound_rps, equal_work_shares
from dynaserve.sim.capacity import (
    Arrivals,
    Scenario,
    fewest_instances,
    find_capacity,
    simulate_rate,
)
from dynaserve.sim.plot import plot
from dynaserve.sim.simulator import SimSettings
from dynaserve.sim.traces import (
    Trace,
    hybrid_arrivals,
    poisson_arrivals,
    read_trace,
    recorded_arrivals,
    synthetic_trace,
)
from services.global_sched.policy import POLICIES
from services.gpu_instance.batcher import parse_mode
from shared.latency_model import DEFAULT_PROFILE, LatencyProfile

MAX_INSTANCES = 1000


def simulate(
    trace: Annotated[
        list[str],
        typer.Option(help="CSV file, or synthetic:PROMPT:OUTPUT; several make a hybrid."),
    ],
    profile: Annotated[Path, typer.Option(help="Latency profile (JSON).")] = DEFAULT_PROFILE,
    instances: Annotated[str, typer.Option(help="2 to 1000, or 'auto' (needs --rate).")] = "2",
    policy: Annotated[str, typer.Option(help=", ".join(sorted(POLICIES)))] = "dynaserve",
    batcher: Annotated[str, typer.Option(help="'slo' or 'static:N'.")] = "slo",
    slo_tbt_ms: Annotated[float, typer.Option(help="P99 gap between tokens.")] = 100.0,
    slo_ttft_ms: Annotated[float, typer.Option(help="Time to first token, fixed part.")] = 1000.0,
    slo_ttft_ms_per_token: Annotated[float, typer.Option(help="… per prompt token.")] = 0.2,
    rate: Annotated[float | None, typer.Option(help="Requests/s; default: as recorded.")] = None,
    capacity: Annotated[
        bool, typer.Option("--find-capacity", help="Highest rate with the goal met.")
    ] = False,
    goal: Annotated[float, typer.Option(help="Share of requests in SLO.")] = 0.9,
    duration_s: Annotated[float, typer.Option(help="Measured time.")] = 200.0,
    warmup_s: Annotated[float, typer.Option(help="Unmeasured time before it.")] = 20.0,
    arrivals: Annotated[str, typer.Option(help="auto, recorded or poisson.")] = "auto",
    window_s: Annotated[float, typer.Option(help="Length of a hybrid's windows.")] = 15.0,
    kv_tokens: Annotated[int, typer.Option(help="KV capacity of an instance.")] = 526_000,
    link_gb_s: Annotated[float, typer.Option(help="KV link bandwidth, GB/s.")] = 270.0,
    step_noise: Annotated[float, typer.Option(help="Sigma of log step time.")] = 0.0,
    launch_ms: Annotated[
        float, typer.Option(help="Least time of a step with prompts (its launch).")
    ] = 0.0,
    lose: Annotated[
        list[str] | None, typer.Option(help="TIME_S:INSTANCE, an instance that vanishes.")
    ] = None,
    admission: Annotated[
        bool, typer.Option("--admission", help="Refuse what would miss its TTFT SLO.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of arrivals and noise.")] = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write figures here.")] = None,
    plot_out: Annotated[Path | None, typer.Option("--plot", help="Write a PNG here.")] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            f"{FLAG}/{INTERPRETED}",
            help="In machine code: the same figures in less than half the time. "
            "Compiles for a minute or two when the sources have changed; needs a checkout and gcc. "
            "Default: in machine code where it was compiled from these sources before.",
        ),
    ] = None,
) -> None:
    """Simulate a pool on a trace: goodput at a rate, its capacity, or the instances it takes."""
    if is_wanted(compiled):
        go_on_compiled(sys.argv[1:])
    _check(policy, batcher, instances, rate, capacity)
    model = LatencyProfile.load(profile).model
    settings = SimSettings(
        model,
        1 if instances == "auto" else int(instances),
        batcher,
        1e-3 * slo_tbt_ms,
        1e-3 * slo_ttft_ms,
        1e-3 * slo_ttft_ms_per_token,
        kv_tokens,
        link_bytes_per_s=1e9 * link_gb_s,
        step_noise=step_noise,
        launch_ms=launch_ms,
        split_roles=policy == "disaggregated",
        refuse_lost=admission,
        losses=tuple(_loss(text) for text in lose or ()),
        seed=seed,
    )
    traces = [_trace(text, seed) for text in trace]
    requests, natural = _arrivals(traces, arrivals, window_s, seed, settings)
    scenario = Scenario(settings, POLICIES[policy], requests, duration_s, warmup_s, goal)
    figures = _run(scenario, rate or natural, instances == "auto", capacity, plot_out)
    figures = {"policy": policy, "batcher": batcher, "slo_tbt_ms": slo_tbt_ms} | figures
    figures["command"] = " ".join(["dynaserve", *sys.argv[1:]])
    text = json.dumps(figures, indent=1)
    if json_out:
        json_out.write_text(text + "\n")
    print(text)


def _check(policy: str, batcher: str, instances: str, rate: float | None, capacity: bool) -> None:
    if policy not in POLICIES:
        raise typer.BadParameter(f"{policy!r} is none of {sorted(POLICIES)}", param_hint="--policy")
    try:
        parse_mode(batcher)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--batcher") from error
    if instances != "auto" and not (instances.isdigit() and 1 <= int(instances) <= MAX_INSTANCES):
        raise typer.BadParameter("1 to 1000, or 'auto'", param_hint="--instances")
    if capacity and (rate is not None or instances == "auto"):
        raise typer.BadParameter("takes neither --rate nor 'auto'", param_hint="--find-capacity")


def _loss(text: str) -> tuple[float, int]:
    at_s, _, index = text.partition(":")
    try:
        return float(at_s), int(index)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not TIME_S:INSTANCE", param_hint="--lose") from error


def _trace(text: str, seed: int) -> Trace:
    if text.startswith("synthetic:"):
        _, prompt, output = text.split(":")
        return synthetic_trace(int(prompt), int(output), seed=seed)
    if not Path(text).is_file():
        raise typer.BadParameter(f"no such file: {text}", param_hint="--trace")
    return read_trace(Path(text))


def _arrivals(
    traces: list[Trace], kind: str, window_s: float, seed: int, settings: SimSettings
) -> tuple[Arrivals, float | None]:
    """The request stream as a function of the rate, and the rate it was recorded at."""
    if len(traces) > 1:
        shares = equal_work_shares(traces, settings)
        hybrid = partial(hybrid_arrivals, traces, window_s=window_s, seed=seed, shares=shares)
        return hybrid, None
    recorded = traces[0].recorded_rate
    if kind == "recorded" or (kind == "auto" and recorded is not None):
        return partial(recorded_arrivals, traces[0]), recorded
    return partial(poisson_arrivals, traces[0], seed=seed), recorded


def _run(
    scenario: Scenario, rate: float | None, auto: bool, capacity: bool, plot_out: Path | None
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        if capacity:
            rate = found["capacity_rps"] = _capacity(scenario, progress)
        if not rate:
            hint = "no rate met the goal" if capacity else "the trace has none: give --rate"
            raise typer.BadParameter(hint, param_hint="--rate")
        if auto:
            scenario = _fewest(scenario, rate, progress)
        outcome, figures = simulate_rate(scenario, rate, progress=_bar(progress, scenario))
    requests = scenario.arrivals(rate, scenario.until_s)
    found |= {"instances": scenario.settings.instances, **figures}
    found["bound_rps"] = bound_rps(requests, scenario.settings)
    if plot_out:
        plot(outcome, scenario.timed(), plot_out, f"{rate:.2f} requests/s")
    return found


def _bar(progress: Progress, scenario: Scenario) -> Callable[[float], None]:
    task = progress.add_task("simulating", total=scenario.until_s)
    return lambda now_s: progress.update(task, completed=now_s)


def _capacity(scenario: Scenario, progress: Progress) -> float:
    task = progress.add_task("searching", total=None)

    def narrowed(low: float, high: float) -> None:
        progress.update(task, description=f"capacity in {low:.2f} … {high:.2f} requests/s")

    return find_capacity(scenario, progress=narrowed)


def _fewest(scenario: Scenario, rate: float, progress: Progress) -> Scenario:
    task = progress.add_task("searching", total=None)

    def narrowed(low: int, high: int) -> None:
        progress.update(task, description=f"more than {low}, at most {high} instances")

    number = fewest_instances(scenario, rate, most=MAX_INSTANCES, progress=narrowed)
    if number is None:
        raise typer.BadParameter("not even 1000 instances meet the goal", param_hint="--rate")
    return replace(scenario, settings=replace(scenario.settings, instances=number))
