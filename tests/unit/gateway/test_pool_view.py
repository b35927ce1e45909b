"""What the pool view tells and what it keeps to itself."""

import pytest

from services.gateway.pool_view import without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://user:p%40ss@bus:4222", "nats://bus:4222"),
        ("tls://token@bus:4222", "tls://bus:4222"),
    ],
)
def test_the_bus_is_told_without_its_secrets(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
