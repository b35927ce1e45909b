"""Which transport joins two ports."""

import pytest

from services.kv_transfer.links.address import PortAddress, choose_transport, usable_transports
from services.kv_transfer.links.errors import TransportRefused


def port(host_id: str, *transports: str) -> PortAddress:
    return PortAddress("id", host_id, "10.0.0.1", 1234, "name", transports)


def test_an_address_survives_the_registry() -> None:
    address = port("h", "shm", "tcp")
    assert PortAddress.decode(address.encode()) == address


def test_one_host_shares_memory_and_two_hosts_use_tcp() -> None:
    here, there = port("h1", "shm", "tcp"), port("h2", "shm", "tcp")
    assert choose_transport(here, here) == "shm"
    assert choose_transport(here, there) == "tcp"
    assert usable_transports(here, here) == ["shm", "tcp"]


def test_both_sides_must_have_the_transport() -> None:
    assert choose_transport(port("h", "shm", "tcp"), port("h", "tcp")) == "tcp"
    with pytest.raises(TransportRefused, match="no transport joins"):
        choose_transport(port("h", "shm"), port("h", "tcp"))


def test_a_forced_transport_is_taken_or_refused_with_the_usable_ones_named() -> None:
    here, there = port("h1", "shm", "tcp"), port("h2", "shm", "tcp")
    assert choose_transport(here, here, "tcp") == "tcp"
    with pytest.raises(TransportRefused, match=r"'shm' cannot join .* usable: \['tcp'\]"):
        choose_transport(here, there, "shm")
