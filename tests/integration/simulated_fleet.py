"""Many simulated instances in one process: ``python -m tests.integration.simulated_fleet``."""

import argparse
import asyncio
import signal

from services.gpu_instance.actor import InstanceActor
from services.gpu_instance.engine.simulated import SimulatedEngine
from services.gpu_instance.engine.simulated_settings import SimulationSettings
from services.gpu_instance.settings import InstanceSettings
from shared.bus_nats import NatsBus


async def run_fleet(nats: str, pool: str, count: int, vocab_size: int, slowdown: float) -> None:
    """Until SIGTERM; they report less often than alone, as they share a core."""
    bus = await NatsBus.connect(nats, "fleet")
    simulation = SimulationSettings(vocab_size=vocab_size, num_blocks=2048, slowdown=slowdown)
    actors = [
        InstanceActor(
            bus,
            InstanceSettings(pool=pool, id=f"gpu-{n}", telemetry_interval_s=0.25, drain_s=0.1),
            SimulatedEngine(simulation),
        )
        for n in range(count)
    ]

    def stop() -> None:
        for actor in actors:
            actor.stop()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    async with asyncio.TaskGroup() as group:
        for actor in actors:
            group.create_task(actor.run())
    await bus.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nats", required=True)
    parser.add_argument("--pool", required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=512)
    parser.add_argument("--slowdown", type=float, default=1.0)
    given = parser.parse_args()
    asyncio.run(run_fleet(given.nats, given.pool, given.count, given.vocab_size, given.slowdown))


if __name__ == "__main__":
    main()
