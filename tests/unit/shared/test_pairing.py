"""Which two instances can exchange KV, and how."""

import pytest

from shared.errors import GeometryMismatch, HandoffError
from shared.pairing import check_geometry, choose_transport
from shared.schemas.handoff import Transport
from tests.unit.global_sched.pool_stage import GEOMETRY, instance

ALL = ["shm", "tcp", "nccl"]


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),
    [
        ({}, {}, "shm"),
        ({}, {"host_id": "other"}, "tcp"),
        ({"transports": ["tcp"]}, {}, "tcp"),
        ({"transports": ALL, "device": "gpu0"}, {"transports": ALL, "device": "gpu1"}, "nccl"),
        ({"transports": ALL, "device": "gpu0"}, {"transports": ALL, "device": "gpu0"}, "shm"),
        ({"transports": ALL}, {"transports": ALL, "host_id": "other"}, "nccl"),
        ({"transports": ALL, "device": "gpu0"}, {"device": "gpu1"}, "shm"),
    ],
)
def test_the_best_transport_both_have_and_that_reaches_is_chosen(
    alpha: dict[str, object], beta: dict[str, object], expected: Transport
) -> None:
    assert choose_transport(instance("a", **alpha), instance("b", **beta)) == expected


def test_a_wanted_transport_is_honoured_or_refused_with_what_each_side_has() -> None:
    here, there = instance("a"), instance("b", host_id="other")
    assert choose_transport(here, instance("b"), "tcp") == "tcp"
    with pytest.raises(HandoffError, match=r"'shm' does not join a \(shm, tcp on host\) and b"):
        choose_transport(here, there, "shm")
    with pytest.raises(HandoffError, match="no transport joins"):
        choose_transport(here, instance("b", transports=[]))


def test_a_geometry_mismatch_names_every_field_with_both_values() -> None:
    other = GEOMETRY.model_copy(update={"block_size": 32, "dtype": "bfloat16"})
    check_geometry(instance("a"), instance("b"))
    with pytest.raises(GeometryMismatch) as raised:
        check_geometry(instance("a"), instance("b", geometry=other))
    assert "dtype 'float32' / 'bfloat16', block_size 16 / 32" in str(raised.value)
