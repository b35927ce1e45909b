"""``python -m services.gateway MODEL [--nats URL] [flags of vllm serve]``."""

import logging
import sys
from collections.abc import Sequence

import uvloop

from services.gateway.settings import GatewaySettings
from shared.bus_nats import NatsBus
from shared.service import one_line_errors
from shared.telemetry import collect_metrics
from shared.tracing import start_tracing, stop_tracing


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one gateway until SIGTERM."""
    given = sys.argv[1:] if arguments is None else arguments
    settings = GatewaySettings(_cli_parse_args=list(given))
    _set_up_log(settings)
    # Importing vLLM takes seconds: after the flags of ours, so that a wrong one is told at once.
    from services.gateway.front.application import parse_vllm_args
    from services.gateway.front.server import serve

    args = parse_vllm_args(settings.vllm_args)
    collect_metrics("gateway", settings.id)

    async def run() -> None:
        bus = await NatsBus.connect(settings.nats, f"dynaserve.gateway.{settings.id}")
        try:
            await serve(settings, args, bus)
        finally:
            await bus.close()

    start_tracing("gateway", settings.id, settings.otlp_endpoint, settings.trace_sample_ratio)
    try:
        with one_line_errors(f"gateway {settings.id}"):
            uvloop.run(run())
    finally:
        stop_tracing()


def _set_up_log(settings: GatewaySettings) -> None:
    """A log of our own beside vLLM's, which sets itself up."""
    handler = logging.StreamHandler()
    form = f"%(asctime)s %(levelname)s {settings.id} %(name)s: %(message)s"
    handler.setFormatter(logging.Formatter(form))
    log = logging.getLogger("dynaserve")
    log.addHandler(handler)
    log.setLevel(settings.log_level.upper())


if __name__ == "__main__":
    main()
