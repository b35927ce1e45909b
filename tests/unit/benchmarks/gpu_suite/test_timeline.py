"""Phases of a first token add up to its TTFT."""

import pytest

from benchmarks.gpu_suite.timeline import PHASES, phases


def test_the_phases_follow_each_other_from_client_to_client() -> None:
    record = {
        "arrival_at_s": 100.001,
        "place_s": 0.002,
        "ttft_s": 0.05,
        "segments": [{"received_s": 100.004}],
    }
    found = phases(100.0, 100.053, record)
    assert [found[name] for name in PHASES] == pytest.approx([1.0, 2.0, 1.0, 47.0, 2.0])
    assert found["ttft_ms"] == pytest.approx(sum(found[name] for name in PHASES))
