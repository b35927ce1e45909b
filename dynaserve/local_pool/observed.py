"""How the metrics and traces of a local pool are found: flags of its parts, scrape targets."""

import json
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from dynaserve.local_pool.plan import Part
from dynaserve.local_pool.settings import PoolSettings

SERVICE_OF = {"kv": "kv_transfer", "scheduler": "global_sched", "instance": "gpu_instance"}
TARGETS_FOLDER = "targets"


class TargetGroup(TypedDict):
    """One entry of Prometheus' file-based service discovery."""

    targets: list[str]
    labels: dict[str, str]


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def observed(
    parts: Iterable[Part], settings: PoolSettings, choose_port: Callable[[], int]
) -> list[Part]:
    """The parts with a metrics port each (a gateway has its own) and, if asked for, traces."""
    return [_observed(part, settings, choose_port) for part in parts]


def _observed(part: Part, settings: PoolSettings, choose_port: Callable[[], int]) -> Part:
    flags: tuple[str, ...] = ()
    if settings.otlp_endpoint is not None:
        flags = ("--otlp-endpoint", settings.otlp_endpoint)
    if is_gateway(part):
        if flags:
            flags += ("--trace-sample-ratio", str(settings.trace_sample_ratio))
        return replace(part, arguments=(*part.arguments, *flags))
    port = choose_port()
    flags += ("--metrics-port", str(port))
    return replace(part, arguments=(*part.arguments, *flags), metrics_address=f"127.0.0.1:{port}")


def targets(parts: Iterable[Part], settings: PoolSettings) -> list[TargetGroup]:
    """What Prometheus scrapes, with the labels that dashboards group by."""
    return [
        {
            "targets": [part.metrics_address],
            "labels": {"service": service_of(part), "part": part.name, "pool": settings.pool},
        }
        for part in parts
        if part.metrics_address
    ]


def write_targets(groups: Sequence[TargetGroup], settings: PoolSettings) -> Path:
    """One file a pool, all in one folder, as Prometheus looks into no deeper ones."""
    folder = settings.log_folder / TARGETS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{settings.pool}.json"
    being_written = path.with_suffix(".tmp")
    being_written.write_text(json.dumps(groups, indent=2))
    being_written.replace(path)  # at once: Prometheus may be reading it
    return path


def is_gateway(part: Part) -> bool:
    return part.name.startswith("gateway")


def service_of(part: Part) -> str:
    return SERVICE_OF.get(part.name.split("-")[0], "gateway")
