"""Pytest plugin for tests of DynaServe and of what is built on it: a NATS server, a whole pool.

Use it with ``pytest_plugins = ["dynaserve.testing"]`` in the topmost ``conftest.py``.

| fixture | scope | what |
|---|---|---|
| `nats_server` | session | an `EmbeddedNats` with JetStream on any free port |
| `nats_url` | test | its URL |
| `pool` | test | a pool name no other test has, so that tests sharing the server do not meet |
| `engine_pool` | session | a `BackgroundPool`: two real engines, two schedulers, all parts whole |
| `otlp_endpoint` | session | None; override it to get traces of `engine_pool` |
"""

import itertools
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from dynaserve.local_pool import PoolSettings
from dynaserve.local_pool.background import BackgroundPool
from infra.nats import EmbeddedNats

_POOL_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def nats_server() -> Iterator[EmbeddedNats]:
    """One embedded server for the whole run."""
    with EmbeddedNats() as server:
        yield server


@pytest.fixture
def nats_url(nats_server: EmbeddedNats) -> str:
    """The URL of the run's server; combine it with ``pool``."""
    return nats_server.url


@pytest.fixture
def pool() -> str:
    """A pool of this test's own: subjects and buckets made from it are its own too."""
    return f"test{next(_POOL_NUMBERS)}"


@pytest.fixture(scope="session")
def otlp_endpoint() -> str | None:
    """Where ``engine_pool`` sends the traces of requests whose ``traceparent`` wants one."""
    return None


@pytest.fixture(scope="session")
def session_pool(
    tmp_path_factory: pytest.TempPathFactory, otlp_endpoint: str | None
) -> Iterator[BackgroundPool]:
    """The processes behind ``engine_pool``; steps are small, so that prompts take several."""
    settings = PoolSettings(
        instances=2,
        schedulers=2,
        port=free_port(),
        pool="tests",
        log_folder=tmp_path_factory.mktemp("logs"),
        otlp_endpoint=otlp_endpoint,
        trace_sample_ratio=0.0,
        engine_args=["--max-num-batched-tokens=64", "--num-gpu-blocks-override=2000"],
    )
    with BackgroundPool(settings) as pool:
        yield pool


@pytest.fixture
def engine_pool(session_pool: BackgroundPool) -> BackgroundPool:
    """A pool of two real engines, with every part there, also when the last test killed one."""
    wait_until_whole(session_pool)
    return session_pool


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_whole(pool: BackgroundPool, timeout_s: float = 60.0) -> None:
    """Return once the registry shows every part of the pool alive.

    A record outlives its owner by some seconds: of a part that was killed, only what started
    after that counts.
    """
    wanted = {
        "instances": pool.settings.instances or 2,
        "schedulers": pool.settings.schedulers,
        "coordinators": pool.settings.coordinators,
    }
    deadline_s = time.monotonic() + timeout_s
    with httpx.Client(base_url=pool.url, timeout=5.0) as client:
        while True:
            view = client.get("/dynaserve/pool").json()
            there = {
                kind: sum(
                    record["started_s"] > pool.killed_at_s.get(record["instance_id"], 0.0)
                    for record in view[kind]
                )
                for kind in wanted
            }
            if there == wanted:
                return
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the pool has {there}, not {wanted}")
            time.sleep(0.1)
