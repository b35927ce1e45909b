"""The embedded NATS server: one child process with JetStream, ready when its ports are known."""

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from infra.nats.binary import find_nats_server
from infra.nats.config import NatsConfig
from infra.processes import die_with_parent
from shared.errors import NatsServerError

__all__ = ["EmbeddedNats", "NatsServerError"]

READY_DEADLINE_S = 10.0
STOP_DEADLINE_S = 5.0
WATCH_INTERVAL_S = 0.003
LOG_TAIL_LINES = 5


class EmbeddedNats:
    """Owns one server process and its folder; both end with ``stop`` or with this process.

    ``port`` 0 takes any free port; ``store_dir`` None keeps JetStream's files in a folder that
    goes with the server; ``monitor_port`` None leaves HTTP monitoring off and 0 takes any port.
    Use it as a context manager, plain or async, or call ``start`` and ``stop``.
    """

    def __init__(
        self,
        port: int = 0,
        store_dir: Path | None = None,
        monitor_port: int | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self._port = port
        self._host = host
        self._store_dir = store_dir
        self._monitor_port = monitor_port
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, list[str]] = {}

    @property
    def url(self) -> str:
        """Where clients connect."""
        return self._address("nats")

    @property
    def monitor_url(self) -> str:
        """Where HTTP monitoring answers."""
        return self._address("monitoring")

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise NatsServerError("the embedded NATS server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server and return when it takes connections."""
        process = self._launch()
        deadline_s = time.monotonic() + READY_DEADLINE_S
        try:
            while not self._is_ready(process, deadline_s):
                time.sleep(WATCH_INTERVAL_S)
        except BaseException:
            self.stop()
            raise

    async def start_async(self) -> None:
        """``start`` without holding up the event loop."""
        process = self._launch()
        deadline_s = time.monotonic() + READY_DEADLINE_S
        try:
            while not self._is_ready(process, deadline_s):
                await asyncio.sleep(WATCH_INTERVAL_S)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server within ``STOP_DEADLINE_S`` and remove its folder; twice is harmless."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        self._ports = {}

    def _launch(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            raise NatsServerError("the embedded NATS server is already running")
        program = find_nats_server()
        self._folder = folder = Path(tempfile.mkdtemp(prefix="dynaserve-nats-"))
        config = NatsConfig(
            port=self._port,
            host=self._host,
            store_dir=self._store_dir or folder / "jetstream",
            ports_dir=folder,
            monitor_port=self._monitor_port,
        )
        (folder / "nats.conf").write_text(config.to_json())
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, "--config", folder / "nats.conf"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
                start_new_session=True,  # Ctrl-C is ours to handle, in our order
            )
        return self._process

    def _is_ready(self, process: subprocess.Popen[bytes], deadline_s: float) -> bool:
        """Read the ports file, which the server writes once its listeners are up."""
        if process.poll() is not None:
            raise NatsServerError(f"nats-server ended at once: {self._log_tail()}")
        if time.monotonic() > deadline_s:
            raise NatsServerError(
                f"nats-server is not ready after {READY_DEADLINE_S:g} s: {self._log_tail()}"
            )
        self._ports = self._read_ports(process.pid)
        return bool(self._ports)

    def _read_ports(self, pid: int) -> dict[str, list[str]]:
        """The ports file's content; empty while it is missing or half written."""
        if self._folder is None:
            return {}
        try:
            text = (self._folder / f"nats-server_{pid}.ports").read_text()
            ports: dict[str, list[str]] = json.loads(text)
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return ports

    def _log_tail(self) -> str:
        if self._folder is None:
            return "no log"
        lines = (self._folder / "log").read_text(errors="replace").splitlines()
        faults = [line for line in lines if "[FTL]" in line or "[ERR]" in line]
        return " | ".join((faults or lines)[-LOG_TAIL_LINES:]) or "it said nothing"

    def _address(self, kind: str) -> str:
        addresses = self._ports.get(kind)
        if not addresses:
            raise NatsServerError(f"the embedded NATS server has no {kind} address; is it started?")
        return addresses[0]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await self.start_async()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
