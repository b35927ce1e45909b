"""Speed of KV links, as handoffs measured it."""

import pytest

from services.gpu_instance.link_meter import MAX_PEERS, LinkMeter
from shared.kv_seam import HandoffSignal
from shared.schemas.handoff import HandoffPhase, Side
from shared.schemas.segment import HandoffRef


def sent(
    num_bytes: int, transfer_s: float, phase: HandoffPhase = "sent_all", side: Side = "alpha"
) -> HandoffSignal:
    return HandoffSignal("h", "r", 1, side, phase, num_bytes, transfer_s)


def to(peer_id: str) -> HandoffRef:
    return HandoffRef(
        handoff_id="h", cut=1, peer_id=peer_id, coordinator_id="c", deadline_s=1.0, transport="shm"
    )


def test_speed_is_bytes_over_busy_time_and_small_handoffs_weigh_little() -> None:
    meter = LinkMeter()
    meter.observe(sent(10**9, 0.1), to("b"))
    meter.observe(sent(1000, 0.001), to("b"))
    (link,) = meter.loads()
    assert (link.peer_id, link.transport) == ("b", "shm")
    assert link.bytes_per_s == pytest.approx(1e10, rel=0.02)


def test_it_follows_a_link_that_becomes_slow() -> None:
    meter = LinkMeter()
    for seconds in [0.01] * 50 + [0.1] * 50:
        meter.observe(sent(10**8, seconds), to("b"))
    assert meter.loads()[0].bytes_per_s == pytest.approx(1e9, rel=0.1)


def test_only_what_this_side_sent_counts_and_nothing_divides_by_zero() -> None:
    meter = LinkMeter()
    meter.observe(sent(10, 1.0, side="beta"), to("b"))
    meter.observe(sent(10, 1.0, phase="complete"), to("b"))
    meter.observe(sent(0, 1.0), to("b"))
    meter.observe(sent(10, 0.0), to("b"))
    assert meter.loads() == []


def test_the_peers_used_last_are_told() -> None:
    meter = LinkMeter()
    for number in range(100):
        meter.observe(sent(10, 1.0), to(f"p{number}"))
    assert [link.peer_id for link in meter.loads()] == [
        f"p{n}" for n in range(100 - MAX_PEERS, 100)
    ]
