"""Many simulated instances in one process: ``python -m benchmarks.placements.instances URL N``."""

import asyncio
import contextlib
import signal
import sys

import uvloop

from services.gpu_instance.actor import InstanceActor
from services.gpu_instance.engine.simulated import SimulatedEngine
from services.gpu_instance.settings import InstanceSettings
from shared.bus_nats import NatsBus


async def serve(url: str, count: int) -> None:
    """``count`` instances, each with its own connection, until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with asyncio.TaskGroup() as tasks, contextlib.AsyncExitStack() as connections:
        actors = []
        for number in range(count):
            bus = await NatsBus.connect(url, f"sim{number}")
            connections.push_async_callback(bus.close)
            settings = InstanceSettings(id=f"sim{number}", engine="simulated", drain_s=0.5)
            actors.append(InstanceActor(bus, settings, SimulatedEngine()))
        running = [tasks.create_task(actor.run()) for actor in actors]
        await stop.wait()
        for actor in actors:
            actor.stop()
        await asyncio.wait(running)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
