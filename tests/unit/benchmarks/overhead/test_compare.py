import math
from dataclasses import replace

import pytest

from benchmarks.overhead.compare import ratios, sentences
from benchmarks.overhead.measure import Level
from dynaserve.bench.overhead import ClientOverhead

CLIENT = ClientOverhead(0.1, 20.0, 5.0, 100, 0.1, 0.2, 0.3, 0.0, 0.0, 0.0)
LEVEL = Level(8, 64, 10.0, 10.0, 20.0, 5.0, 5.0, 300.0, 1000.0, CLIENT)


def test_rounds_are_paired_and_the_spread_is_over_them() -> None:
    first = [[LEVEL], [replace(LEVEL, ttft_median_ms=20.0)]]
    second = [[replace(LEVEL, ttft_median_ms=11.0)], [replace(LEVEL, ttft_median_ms=26.0)]]
    found = ratios(first, second)[8]["ttft_median_ms"]

    assert found["mean"] == found["median"] == pytest.approx(1.2)
    assert (found["lowest"], found["highest"]) == pytest.approx((1.1, 1.3))
    assert found["standard_error"] == pytest.approx(0.1)
    assert found["rounds"] == 2


def test_a_round_without_a_figure_is_left_out_and_said_so() -> None:
    first = [[LEVEL], [replace(LEVEL, tpot_median_ms=0.0)]]
    found = ratios(first, [[LEVEL], [LEVEL]])[8]["tpot_median_ms"]

    assert (found["median"], found["rounds"]) == (1.0, 1)
    assert math.isnan(found["standard_error"])


def test_one_sentence_a_concurrency() -> None:
    lines = sentences(ratios([[LEVEL]], [[LEVEL]]), ("plain", "pool"))

    assert len(lines) == 1
    assert lines[0].startswith("pool / plain at 8: TTFT 1.000")
