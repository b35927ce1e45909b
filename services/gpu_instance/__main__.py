"""``python -m services.gpu_instance MODEL [--nats URL] [vLLM's flags]``."""

import sys
from collections.abc import Sequence

from services.gpu_instance.actor import InstanceActor
from services.gpu_instance.engine.seam import Engine
from services.gpu_instance.settings import InstanceSettings, read_settings
from shared.bus import Bus
from shared.service import run_service

SWITCH_INTERVAL_S = 0.0005
"""Engine, bus and KV links are threads of this process. Python lets a running thread keep the
interpreter for 5 ms by default, which a handoff that passes through several threads pays each time.
"""


def build_engine(settings: InstanceSettings) -> Engine:
    """The engine the settings name; vLLM is imported only when it is wanted."""
    if settings.engine == "simulated":
        from services.gpu_instance.engine.simulated import SimulatedEngine
        from services.gpu_instance.engine.simulated_settings import SimulationSettings

        return SimulatedEngine(
            SimulationSettings.from_args(
                settings.model, settings.engine_args, settings.batcher, settings.latency_profile
            )
        )
    from services.gpu_instance.engine.vllm_engine import VllmEngine

    return VllmEngine(settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one instance until SIGTERM; exits non-zero when its engine fails."""
    settings = read_settings(sys.argv[1:] if arguments is None else arguments)
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    def build(bus: Bus) -> InstanceActor:
        return InstanceActor(bus, settings, build_engine(settings))

    run_service("gpu_instance", settings, build)


if __name__ == "__main__":
    main()
