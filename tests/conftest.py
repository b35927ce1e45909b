"""What every test can use."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.integration.otlp_collector import Collector

pytest_plugins = ["dynaserve.testing"]

# No example has a time limit: on a busy host that would be a test of the host.
_profile = settings.get_current_profile_name()
settings.register_profile(_profile, settings.get_profile(_profile), deadline=None)


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Gets the traces of ``engine_pool``."""
    with Collector() as listening:
        yield listening


@pytest.fixture(scope="session")
def otlp_endpoint(collector: Collector) -> Iterator[str]:
    """Where ``engine_pool`` sends traces, without waiting long for more of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        yield collector.endpoint
