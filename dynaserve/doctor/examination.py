"""All that the doctor looks at, in the order of the screen."""

from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from dynaserve.doctor import bus, gpu, machine, pool, software
from dynaserve.doctor.finding import Finding
from shared.schemas.registry import GatewayRecord


@dataclass(frozen=True)
class Examined:
    """Where to look.

    ``nats`` None asks the gateway on ``http_port``; without one it looks for a server at its usual
    place without insisting.
    """

    nats: str | None
    pool: str
    http_port: int


async def examine(where: Examined) -> list[Finding]:
    """Collect every fact, then judge."""
    where = await follow_gateway(where)
    url = where.nats or f"nats://127.0.0.1:{bus.DEFAULT_PORT}"
    bus_report = await bus.read_bus(url, where.pool)
    gpu_report = gpu.read_gpus()
    records, unreadable = pool.read_records(bus_report.records)
    gateways = [record.url for record in records if isinstance(record, GatewayRecord)]
    return [
        *software.judge_software(software.installed_versions(), bool(gpu_report.gpus)),
        *gpu.judge_gpus(gpu_report),
        machine.judge_memory(machine.read_memory()),
        machine.judge_shm(machine.read_shm()),
        machine.judge_http_port(machine.read_port(where.http_port), gateways),
        *look_at_nats_port(url, answers=bus_report.error is None),
        *bus.judge_bus(bus_report, wanted=where.nats is not None),
        *(pool.judge_pool(records, unreadable) if bus_report.error is None else ()),
    ]


async def follow_gateway(where: Examined) -> Examined:
    """The pool of the gateway on this host's port, where no pool is named and one answers."""
    if where.nats is not None:
        return where
    served = await pool.ask_gateway(f"http://127.0.0.1:{where.http_port}")
    return where if served is None else replace(where, nats=served.nats, pool=served.pool)


def look_at_nats_port(url: str, answers: bool) -> list[Finding]:
    """The port of a server on this host; nothing about one elsewhere."""
    address = urlsplit(url)
    if address.hostname not in ("127.0.0.1", "localhost"):
        return []
    return [machine.judge_nats_port(machine.read_port(address.port or bus.DEFAULT_PORT), answers)]
