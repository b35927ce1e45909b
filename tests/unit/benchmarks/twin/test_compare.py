"""What the twin is told, and how far off it is."""

import pytest

from benchmarks.twin.compare import errors, overheads
from shared.latency_model import LatencyModel
from tests.unit.dynaserve.bench.made import observation

MODEL = LatencyModel(5.0, 1.0, 0.0, 0.1, 0.0)


def test_overheads_are_what_the_steps_do_not_explain() -> None:
    # Prefill of 10 tokens takes 6 ms, a decode step 6 ms; seen are 20 ms and 8 ms.
    seen = [observation(ttft_s=0.020, gaps_s=(0.008,) * 4) for _ in range(5)]
    seen.append(observation(ttft_s=5.0, gaps_s=(1.0,)))  # one hiccup does not count
    found = overheads(seen, MODEL)
    assert found.step_ms == pytest.approx(2.0)
    assert found.first_token_ms == pytest.approx(20.0 - 6.0 - 2.0)


def test_errors_are_relative_but_for_shares() -> None:
    real = dict.fromkeys(("ttft_p50_ms", "ttft_p99_ms", "tbt_p50_ms", "tbt_p99_ms"), 100.0)
    real |= {"attainment": 0.9, "goodput_rps": 4.0}
    found = errors(real, real | {"ttft_p99_ms": 150.0, "attainment": 0.8})
    assert found["error"]["ttft_p99_ms"] == 0.5
    assert found["error"]["attainment"] == pytest.approx(-0.1)
    assert found["error"]["goodput_rps"] == 0.0
