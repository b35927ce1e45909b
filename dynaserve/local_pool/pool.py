"""The pool as a whole: start everything, wait until a request can be placed, end everything."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from dynaserve.demo_model import demo_model
from dynaserve.local_pool.children import Child
from dynaserve.local_pool.hardware import look
from dynaserve.local_pool.observed import free_port, observed, targets, write_targets
from dynaserve.local_pool.plan import plan_parts
from dynaserve.local_pool.restarts import Restarts
from dynaserve.local_pool.settings import PoolSettings
from infra.nats.server import EmbeddedNats
from shared.errors import EngineFailed

logger = logging.getLogger(__name__)

POLL_S = 0.1
STOP_S = 15.0


class PoolDidNotStart(EngineFailed):
    """A part ended, or none could be placed, before the pool was ready."""


class LocalPool:
    """Owns every process of a pool. Use it as an async context manager.

    Once the pool serves, a part that ends by itself is started again, and ``tell`` hears of it.
    """

    def __init__(
        self,
        settings: PoolSettings,
        tell: Callable[[str], None] = logger.warning,
    ) -> None:
        self.settings = settings
        self._tell = tell
        self.children: dict[str, Child] = {}
        self.targets_file: Path | None = None
        self._nats: EmbeddedNats | None = None
        self._watches: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[str] | None = None

    @property
    def url(self) -> str:
        """Where clients connect; ``/v1`` behind it is the OpenAI API."""
        return f"http://{self.settings.host}:{self.settings.port}"

    @property
    def nats_url(self) -> str:
        if self.settings.nats is not None:
            return self.settings.nats
        assert self._nats is not None
        return self._nats.url

    @property
    def log_folder(self) -> Path:
        return self.settings.log_folder / self.settings.pool

    async def start(self) -> None:
        """Start all parts and return when a request can be placed. Raises PoolDidNotStart."""
        if self.settings.nats is None:
            self._nats = EmbeddedNats()
            await self._nats.start_async()
        self._failed = asyncio.get_running_loop().create_future()
        model = "" if self.settings.model else str(demo_model())
        parts = plan_parts(self.settings, look(), self.nats_url, model)
        parts = observed(parts, self.settings, free_port)
        self.targets_file = write_targets(targets(parts, self.settings), self.settings)
        for part in parts:
            child = Child(part, self.log_folder)
            child.log_path.unlink(missing_ok=True)
            self.children[part.name] = child
            await child.start()
            self._watches.append(asyncio.create_task(self._watch(child), name=part.name))
        await self._until_ready()

    async def stop(self) -> None:
        """End all parts, in an order in which running requests can finish; bounded."""
        for watch in self._watches:
            watch.cancel()
        for prefix in ("gateway", "instance", "scheduler", "kv-transfer"):
            ending = [c.stop(STOP_S) for n, c in self.children.items() if n.startswith(prefix)]
            await asyncio.gather(*ending)
        self.children.clear()
        if self.targets_file is not None:
            self.targets_file.unlink(missing_ok=True)
        if self._nats is not None:
            self._nats.stop()
            self._nats = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _watch(self, child: Child) -> None:
        """Start a part again whenever it ends; before the pool is ready that is a failure."""
        assert self._failed is not None
        restarts = Restarts()
        while True:
            started_s = time.monotonic()
            status = await child.wait()
            ended = f"{child.part.name} ended with status {status}"
            if not self._ready:
                if not self._failed.done():
                    self._failed.set_result(f"{ended}:\n{child.log_tail()}")
                return
            wait_s = restarts.after_s(time.monotonic() - started_s)
            self._tell(f"{ended}; it is started again in {wait_s:.0f} s, see {child.log_path}")
            await asyncio.sleep(wait_s)
            try:
                await child.start()
            except OSError as error:  # no memory or process to be had now: tried again, later
                self._tell(f"{child.part.name} could not be started: {error}")

    _ready = False

    async def _until_ready(self) -> None:
        assert self._failed is not None
        deadline_s = time.monotonic() + self.settings.ready_timeout_s
        async with httpx.AsyncClient(base_url=self.url, timeout=2.0) as client:
            while not await self._is_ready(client):
                if self._failed.done():
                    raise PoolDidNotStart(self._failed.result())
                if time.monotonic() > deadline_s:
                    raise PoolDidNotStart(
                        f"no request can be placed after {self.settings.ready_timeout_s:.0f} s; "
                        f"see {self.log_folder}"
                    )
                await asyncio.sleep(POLL_S)
        self._ready = True

    async def _is_ready(self, client: httpx.AsyncClient) -> bool:
        """A request can be placed, and every instance has joined."""
        try:
            if (await client.get("/health")).status_code != 200:
                return False
            joined = (await client.get("/dynaserve/pool")).json()["instances"]
        except httpx.TransportError:
            return False
        wanted = {name for name in self.children if name.startswith("instance")}
        return wanted <= {instance["instance_id"] for instance in joined}
