"""Pytest plugin for tests of DynaServe and of what is built on it: a NATS server to talk to.

Use it with ``pytest_plugins = ["dynaserve.testing"]`` in the topmost ``conftest.py``.

| fixture | scope | what |
|---|---|---|
| `nats_server` | session | an `EmbeddedNats` with JetStream on any free port |
| `nats_url` | test | its URL |
| `pool` | test | a pool name no other test has, so that tests sharing the server do not meet |
"""

import itertools
from collections.abc import Iterator

import pytest

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
