"""Device time of steps, on a device whose time the test sets."""

from __future__ import annotations

import pytest

from services.kv_transfer.connector.step_clock import MAX_STEPS, Mark, StepClock


class Device:
    """Each mark takes the next time (ms); it has come to those up to ``now_ms``."""

    def __init__(self, *times_ms: float) -> None:
        self.times_ms = iter(times_ms)
        self.now_ms = float("inf")

    def mark(self) -> Stamp:
        return Stamp(self)


class Stamp:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.at_ms = 0.0

    def record(self) -> None:
        self.at_ms = next(self.device.times_ms)

    def query(self) -> bool:
        return self.at_ms <= self.device.now_ms

    def elapsed_time(self, end: Mark) -> float:
        assert isinstance(end, Stamp)
        return end.at_ms - self.at_ms


def run_step(clock: StepClock) -> None:
    clock.begin()
    clock.end()


def test_a_step_on_an_idle_device_begins_with_its_own_launch() -> None:
    clock = StepClock(Device(100.0, 109.0, 200.0, 209.0).mark)
    run_step(clock)
    run_step(clock)
    assert clock.take_s(follows=False) == pytest.approx(0.009)
    assert clock.take_s(follows=False) == pytest.approx(0.009)


def test_a_step_that_follows_another_begins_where_that_one_ended() -> None:
    clock = StepClock(Device(100.0, 109.0, 109.2, 158.0).mark)
    run_step(clock)
    run_step(clock)
    assert clock.take_s(follows=False) == pytest.approx(0.009)
    assert clock.take_s(follows=True) == pytest.approx(0.049)


def test_a_step_whose_end_the_device_has_not_reached_is_not_timed_and_the_next_one_is() -> None:
    device = Device(100.0, 109.0, 109.0, 118.0)
    clock = StepClock(device.mark)
    run_step(clock)
    run_step(clock)
    device.now_ms = 105.0
    assert clock.take_s(follows=False) is None
    device.now_ms = 120.0
    assert clock.take_s(follows=True) == pytest.approx(0.009)


def test_an_end_without_a_beginning_is_no_step() -> None:
    clock = StepClock(Device().mark)
    clock.end()
    assert clock.take_s(follows=False) is None


def test_what_nobody_asks_for_is_bounded() -> None:
    clock = StepClock(Device(*range(4 * MAX_STEPS)).mark)
    for _ in range(2 * MAX_STEPS):
        run_step(clock)
    taken = 0
    while clock.take_s(follows=False) is not None:
        taken += 1
    assert taken == MAX_STEPS
