import asyncio
import time
from dataclasses import replace

from dynaserve.bench.overhead import ClientOverhead, OverheadMeter, bottleneck, busiest

IDLE = ClientOverhead(
    cpu_share=0.2,
    cpu_us_per_chunk=20.0,
    handling_us_per_chunk=5.0,
    chunks=1000,
    loop_lag_p50_ms=0.1,
    loop_lag_p99_ms=1.0,
    loop_lag_max_ms=4.0,
    late_mean_ms=0.5,
    late_p99_ms=2.0,
    late_max_ms=3.0,
)


def test_a_client_that_keeps_up_is_trusted() -> None:
    assert bottleneck(IDLE, 0.1, slots_bound=False) == []


def test_each_sign_of_a_slow_client_is_named() -> None:
    slow = replace(IDLE, cpu_share=0.95, loop_lag_p99_ms=50.0, late_p99_ms=80.0)

    assert len(bottleneck(slow, 0.1, slots_bound=False)) == 3


def test_lateness_for_want_of_a_slot_is_not_the_clients() -> None:
    late = replace(IDLE, late_p99_ms=5000.0)

    assert bottleneck(late, 0.1, slots_bound=True) == []
    assert bottleneck(late, 0.1, slots_bound=False) != []


def test_a_tighter_objective_asks_more_of_the_client() -> None:
    lagging = replace(IDLE, loop_lag_p99_ms=8.0)

    assert bottleneck(lagging, 0.1, slots_bound=False) == []
    assert bottleneck(lagging, 0.025, slots_bound=False) != []


async def test_the_meter_sees_a_blocked_loop() -> None:
    meter = OverheadMeter()
    async with meter.running():
        await asyncio.sleep(0.03)
        time.sleep(0.1)
        await asyncio.sleep(0)
    summary = meter.summary([0.001, float("nan")])

    assert summary.loop_lag_max_ms > 80.0
    assert 0.0 < summary.cpu_share < 1.0
    assert summary.late_max_ms == 1.0


def test_of_several_processes_the_worst_counts() -> None:
    other = replace(IDLE, cpu_share=0.9, late_max_ms=1.0, chunks=5)
    worst = busiest([IDLE, other])

    assert (worst.cpu_share, worst.late_max_ms, worst.chunks) == (0.9, 3.0, 1005)
