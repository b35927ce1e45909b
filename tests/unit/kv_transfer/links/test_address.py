"""Which transport joins two ports."""

import pytest

from services.kv_transfer.links.address import (
    PortAddress,
    choose_transport,
    transports_from,
    usable_transports,
)
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


def gpu_port(device: str, *transports: str) -> PortAddress:
    return PortAddress("id", "h", "10.0.0.1", 1234, "name", transports, device)


def test_nccl_joins_two_gpus_and_never_one_with_itself_or_with_none() -> None:
    everything = ("nccl", "gloo", "shm", "tcp")
    one, other = gpu_port("GPU-1", *everything), gpu_port("GPU-2", *everything)
    assert usable_transports(one, other) == ["nccl", "shm", "tcp"]
    assert usable_transports(one, one) == ["shm", "tcp"]
    assert usable_transports(one, gpu_port("", *everything)) == ["shm", "tcp"]
    none = gpu_port("", *everything)
    assert usable_transports(none, none) == ["gloo", "shm", "tcp"]


def test_what_comes_after_the_preferred_transport_is_tried_after_it() -> None:
    here = port("h", "gloo", "shm", "tcp")
    assert transports_from(here, here) == ["gloo", "shm", "tcp"]
    assert transports_from(here, here, "shm") == ["shm", "tcp"]
    with pytest.raises(TransportRefused):
        transports_from(here, here, "nccl")
