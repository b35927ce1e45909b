"""A pool that serves starts its parts again, and says so."""

import asyncio
from pathlib import Path

import pytest

from dynaserve.local_pool import pool as pool_module
from dynaserve.local_pool.children import Child
from dynaserve.local_pool.plan import Part
from dynaserve.local_pool.pool import LocalPool
from dynaserve.local_pool.settings import PoolSettings


class AtOnce:
    def after_s(self, _lived_s: float) -> float:
        return 0.0


class Dying(Child):
    """Ends at once until it was started three times; the first time it cannot even be started."""

    def __init__(self) -> None:
        super().__init__(Part("instance-0", "none", ()), Path("/nowhere"))
        self.starts = 0
        self.lives = asyncio.Event()

    async def start(self) -> None:
        self.starts += 1
        if self.starts == 1:
            raise OSError("Cannot allocate memory")
        if self.starts == 3:
            self.lives.set()

    async def wait(self) -> int:
        if self.lives.is_set():
            await asyncio.Event().wait()
        return -9


async def test_a_part_that_keeps_ending_or_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "Restarts", AtOnce)
    said: list[str] = []
    pool, child = LocalPool(PoolSettings(), tell=said.append), Dying()
    pool._ready, pool._failed = True, asyncio.get_running_loop().create_future()
    watch = asyncio.create_task(pool._watch(child))
    async with asyncio.timeout(5):
        await child.lives.wait()
    watch.cancel()
    assert [line.split(";")[0] for line in said] == [
        "instance-0 ended with status -9",
        "instance-0 could not be started: Cannot allocate memory",
        "instance-0 ended with status -9",
        "instance-0 ended with status -9",
    ]
