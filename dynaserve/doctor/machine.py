"""Memory, shared memory and ports of this host."""

import contextlib
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from dynaserve.doctor.finding import Finding, fail, ok, warn

GIB = 1024**3

# Two CPU engines with the demo model take about 1.3 GiB each, the gateway 0.6 GiB.
NEEDED_MEMORY_BYTES = 4 * GIB
# KV on its way between instances of one host is staged here, 256 MiB an instance.
NEEDED_SHM_BYTES = GIB
SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Space:
    """Bytes there are in all and bytes that can still be had."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class PortUse:
    """A loopback port; ``holder`` names who listens, None when it is free."""

    port: int
    holder: str | None


def read_memory() -> Space:
    memory = psutil.virtual_memory()
    return Space(memory.total, memory.available)


def read_shm() -> Space | None:
    """None where the host has no shared-memory folder."""
    if not SHM.is_dir():
        return None
    usage = shutil.disk_usage(SHM)
    return Space(usage.total, usage.free if os.access(SHM, os.W_OK) else 0)


def read_port(port: int) -> PortUse:
    """Who listens on the port; a process of another user cannot be named."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return PortUse(port, name_of_listener(port) or "a process that is not ours to see")
    return PortUse(port, None)


def name_of_listener(port: int) -> str | None:
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN
        if listens and connection.pid and connection.laddr and connection.laddr.port == port:
            with contextlib.suppress(psutil.NoSuchProcess):
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return None


def judge_memory(memory: Space) -> Finding:
    said = f"{memory.free_bytes / GIB:.1f} of {memory.total_bytes / GIB:.1f} GiB available"
    if memory.free_bytes >= NEEDED_MEMORY_BYTES:
        return ok("memory", said)
    return warn(
        "memory",
        f"{said}; two CPU instances want {NEEDED_MEMORY_BYTES / GIB:.0f} GiB",
        "stop other programs, or `dynaserve up --instances 1`",
    )


def judge_shm(shm: Space | None) -> Finding:
    name = "shared memory"
    if shm is None:
        return warn(
            name, f"there is no {SHM}", "instances of this host will use TCP; mount a tmpfs there"
        )
    said = f"{shm.free_bytes / GIB:.2f} of {shm.total_bytes / GIB:.2f} GiB free in {SHM}"
    if shm.free_bytes >= NEEDED_SHM_BYTES:
        return ok(name, said)
    return fail(
        name,
        f"{said}, {NEEDED_SHM_BYTES / GIB:.0f} GiB needed to hand KV over",
        f"`mount -o remount,size=4G {SHM}`; in a container: --shm-size=4g",
    )


def judge_http_port(use: PortUse, our_gateways: list[str]) -> Finding:
    """The gateway's port is free, or a gateway of the pool has it."""
    name = f"port {use.port}"
    if use.holder is None:
        return ok(name, "free")
    if any(url.rstrip("/").endswith(f":{use.port}") for url in our_gateways):
        return ok(name, f"held by a gateway of the pool, {use.holder}")
    return fail(
        name,
        f"held by {use.holder}, no gateway of this pool",
        "stop it, or serve elsewhere with --port",
    )


def judge_nats_port(use: PortUse, nats_answers: bool) -> Finding:
    """The usual port of NATS is free, or NATS has it."""
    name = f"port {use.port}"
    if use.holder is None:
        return ok(name, "free")
    if nats_answers:
        return ok(name, f"held by NATS, {use.holder}")
    return fail(
        name, f"held by {use.holder}, and NATS does not answer there", "stop it, or give --nats URL"
    )
