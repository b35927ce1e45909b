"""``dynaserve bench --compare`` switches real schedulers and instances between runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from rich.console import Console

from dynaserve.bench.pool import connected
from dynaserve.bench.progress import Board
from dynaserve.bench.report import compared, rows
from dynaserve.bench.run import bench
from dynaserve.bench.settings import read_settings
from dynaserve.bench.systems import parse_system
from services.global_sched.actor import SchedulerActor
from services.global_sched.settings import SchedulerSettings
from services.gpu_instance.actor import InstanceActor
from services.gpu_instance.engine.simulated import SimulatedEngine
from services.gpu_instance.engine.simulated_settings import SimulationSettings
from services.gpu_instance.settings import InstanceSettings
from shared.actor import Actor
from shared.bus_nats import NatsBus
from shared.errors import DynaServeError, InvalidRequest
from tests.integration.fake_openai import FakeServer


@contextlib.asynccontextmanager
async def running(url: str, pool: str) -> AsyncIterator[dict[str, Actor]]:
    """Two schedulers and two simulated instances on a real server."""
    bus = await NatsBus.connect(url, "test")
    actors: dict[str, Actor] = {
        name: InstanceActor(
            bus,
            InstanceSettings(pool=pool, id=name, drain_s=0.1),
            SimulatedEngine(SimulationSettings()),
        )
        for name in ("a", "b")
    }
    for name in ("s1", "s2"):
        settings = SchedulerSettings(pool=pool, id=name, policy="round_robin")
        actors[name] = SchedulerActor(bus, settings)
    async with asyncio.TaskGroup() as group:
        for actor in actors.values():
            group.create_task(actor.run())
        async with asyncio.timeout(20):
            for actor in actors.values():
                await actor.ready.wait()
        yield actors
        for actor in actors.values():
            actor.stop()
    await bus.close()


async def test_every_run_sees_its_own_policy_and_batcher(nats_url: str, pool: str) -> None:
    seen: list[tuple[set[str], set[str]]] = []
    async with running(nats_url, pool) as actors:

        def note() -> None:
            schedulers = [each for each in actors.values() if isinstance(each, SchedulerActor)]
            instances = [each for each in actors.values() if isinstance(each, InstanceActor)]
            seen.append(
                (
                    {each.policy_name for each in schedulers},
                    {
                        each.engine.batcher.mode
                        for each in instances
                        if isinstance(each.engine, SimulatedEngine)
                    },
                )
            )

        async with FakeServer(on_request=note).running() as server:
            settings = read_settings(
                ["--url", server.url, "--nats", nats_url, "--pool", pool, "--num-warmups", "0",
                 "--settle-s", "0", "--trace", "synthetic:10:3", "--request-rate", "20",
                 "--duration-s", "0.5", "--slo-tbt-ms", "500", "--repeats", "2",
                 "--compare", "colocated/static:2048,disaggregated/slo"]
            )  # fmt: skip
            result = await bench(settings, Board(Console(quiet=True)))

    assert [each.system for each in result.results] == [
        "colocated/static:2048", "disaggregated/slo",
        "disaggregated/slo", "colocated/static:2048",  # none is always the first
    ]  # fmt: skip
    assert {str(each) for each in seen} == {
        str(({"colocated"}, {"static:2048"})),
        str(({"disaggregated"}, {"slo"})),
    }
    arrivals = [
        [request.arrival_s for request in each.at.schedule.requests] for each in result.results
    ]
    assert arrivals[0] == arrivals[1] != arrivals[2] == arrivals[3]
    assert result.devices
    table = rows(result)
    assert [row["repeats"] for row in table] == [2, 2]
    assert table[0]["ratios"]["goodput_rps"] == {"mean": 1.0, "lowest": 1.0, "highest": 1.0}
    console = Console(record=True, width=200)
    console.print(compared(result))
    assert "disaggregated/slo" in console.export_text()


@pytest.mark.parametrize(
    ("system", "error", "said"),
    [
        ("no_such_policy/slo", DynaServeError, "refused no_such_policy"),
        ("disaggregated:2p1d/slo", InvalidRequest, "does not fit 2 instances"),
    ],
)
async def test_a_system_the_pool_cannot_be_is_one_clear_error(
    nats_url: str, pool: str, system: str, error: type[DynaServeError], said: str
) -> None:
    async with running(nats_url, pool), connected(nats_url, pool) as control:
        with pytest.raises(error, match=said):
            await control.use(parse_system(system), 0.1)
