"""From settings to a running actor: log, metrics, bus, signals. The same for every service."""

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Protocol

import uvloop

from shared.actor import Actor
from shared.bus import Bus
from shared.bus_nats import NatsBus
from shared.errors import DynaServeError
from shared.telemetry import expose_metrics
from shared.tracing import start_tracing, stop_tracing

log = logging.getLogger("dynaserve.service")


class ServiceSettings(Protocol):
    """What the settings of every service have in common."""

    @property
    def nats(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def metrics_port(self) -> int | None: ...
    @property
    def metrics_host(self) -> str: ...
    @property
    def otlp_endpoint(self) -> str | None: ...
    @property
    def log_level(self) -> str: ...


def run_service(name: str, settings: ServiceSettings, build: Callable[[Bus], Actor]) -> None:
    """Run the actor that ``build`` makes until SIGTERM or SIGINT.

    Exits with status 1 and one line when an error of ours ended it; others keep their traceback.
    """
    logging.basicConfig(
        level=settings.log_level.upper(),
        format=f"%(asctime)s %(levelname)s {settings.id} %(name)s: %(message)s",
    )
    if settings.metrics_port is not None:
        host = settings.metrics_host
        port = expose_metrics(name, settings.id, settings.metrics_port, host)
        log.info("metrics at http://%s:%d/metrics", host, port)
    start_tracing(name, settings.id, settings.otlp_endpoint)
    try:
        with one_line_errors(f"{name} {settings.id}"):
            uvloop.run(_run(name, settings, build))
    finally:
        stop_tracing()


@contextlib.contextmanager
def one_line_errors(who: str) -> Iterator[None]:
    """Turn an error of ours that ends the process into one line and status 1."""
    try:
        yield
    except DynaServeError as error:
        raise SystemExit(f"{who}: {error}") from error
    except BaseExceptionGroup as group:
        ours, others = group.split(DynaServeError)
        if ours is None or others is not None:
            raise
        raise SystemExit(f"{who}: {_first(ours)}") from group


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


async def _run(name: str, settings: ServiceSettings, build: Callable[[Bus], Actor]) -> None:
    bus = await NatsBus.connect(settings.nats, f"dynaserve.{name}.{settings.id}")
    try:
        actor = build(bus)
        freeze_heap()
        await actor.run_until_signal()
    finally:
        await bus.close()


def freeze_heap() -> None:
    """Pass what has been imported and built to the end of the process: it lives that long, and
    scanning it in each full garbage collection would stop everything for tens of milliseconds."""
    gc.collect()
    gc.freeze()
