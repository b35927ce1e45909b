"""``dynaserve profile``: fit the latency model to a running instance."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dynaserve.profile.drive import InstanceDriver
from dynaserve.profile.fitting import make_profile
from dynaserve.profile.plan import EngineLimits, design
from shared.bus_nats import NatsBus
from shared.errors import DynaServeError
from shared.latency_model import LatencyProfile
from shared.registry import PoolRegistry
from shared.schemas.registry import InstanceRecord
from shared.subjects import Subjects

JOIN_TIMEOUT_S = 10.0
CPU_BUDGET_S = 20.0
GPU_BUDGET_S = 90.0


def profile(
    nats: Annotated[str, typer.Option(help="NATS server of the pool.")] = "nats://127.0.0.1:4222",
    pool: Annotated[str, typer.Option(help="Name of the pool.")] = "default",
    instance: Annotated[
        str, typer.Option(help="Instance to measure; none: the first of the pool.")
    ] = "",
    budget_s: Annotated[
        float | None,
        typer.Option(help="Time to spend measuring, seconds; none: 20, on a GPU 90."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the profile here.")] = None,
) -> None:
    """Measure designed batches on an idle instance and fit the latency model to their steps."""
    console = Console()
    try:
        fitted = asyncio.run(_measure(nats, pool, instance, budget_s, console))
    except (DynaServeError, TimeoutError, ValueError) as error:
        console.print(f"dynaserve profile: {error}", style="red")
        raise typer.Exit(1) from error
    console.print(_table(fitted))
    if json is not None:
        json.write_text(fitted.to_json())
        console.print(f"Written to {json}; start instances with --latency-profile {json}")


async def _measure(
    nats: str, pool: str, instance: str, budget_s: float | None, console: Console
) -> LatencyProfile:
    bus = await NatsBus.connect(nats, "dynaserve.profile")
    subjects = Subjects(pool)
    try:
        record = await _find(bus, subjects, instance)
        driver = InstanceDriver(bus, subjects, record.instance_id)
        await driver.start()
        batches = design(
            EngineLimits(
                max_num_seqs=record.max_num_seqs,
                max_model_len=record.max_model_len,
                max_num_batched_tokens=record.max_num_batched_tokens,
                kv_tokens=record.num_blocks * record.geometry.block_size,
            )
        )
        if budget_s is None:
            budget_s = CPU_BUDGET_S if record.device.startswith("cpu") else GPU_BUDGET_S
        with Progress(console=console) as bar:
            task = bar.add_task(f"measuring {record.instance_id}", total=len(batches))
            steps = await driver.measure(
                batches, budget_s, lambda done: bar.update(task, completed=done)
            )
        return make_profile(record, steps)
    finally:
        await bus.close()


async def _find(bus: NatsBus, subjects: Subjects, instance: str) -> InstanceRecord:
    registry = PoolRegistry(bus, subjects)
    watching = asyncio.create_task(registry.run())
    try:
        async with asyncio.timeout(JOIN_TIMEOUT_S):
            await registry.wait_until(
                lambda r: instance in r.instances if instance else bool(r.instances)
            )
    except TimeoutError as error:
        known = ", ".join(registry.instances) or "none"
        raise TimeoutError(f"no instance {instance} in pool {subjects.pool}; {known}") from error
    finally:
        watching.cancel()
    return registry.instances[instance or min(registry.instances)]


def _table(fitted: LatencyProfile) -> Table:
    table = Table(title=f"{fitted.model_name} on {fitted.hardware}: {fitted.num_steps} steps")
    table.add_column("part")
    table.add_column("value", justify="right")
    for name, value in fitted.model._asdict().items():
        table.add_row(name, f"{value:.6g}")
    for name, value in fitted.error._asdict().items():
        table.add_row(f"relative error {name}", f"{100 * value:.1f} %")
    return table
