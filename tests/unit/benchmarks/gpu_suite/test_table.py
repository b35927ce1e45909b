"""The Markdown of the GPU results."""

from pathlib import Path

import pytest

from benchmarks.gpu_suite.table import (
    BEGIN,
    END,
    capacities,
    capacity_row,
    goodput,
    page,
    whole_graphs,
    with_block,
)

RESULTS = Path("benchmarks/results/gpu")


def test_only_the_block_between_the_marks_is_replaced() -> None:
    found = with_block(f"before\n{BEGIN}\nold\n{END}\nafter", "new")
    assert found == f"before\n{BEGIN}\nnew\n{END}\nafter"


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no <!-- made by"):
        with_block("nothing here", "new")


def test_the_page_and_the_readme_are_those_of_the_results_in_the_tree() -> None:
    assert Path("benchmarks/results/gpu.md").read_text() == page(RESULTS)
    readme = Path("README.md").read_text()
    assert "\n".join(goodput(RESULTS, instances=2)) in readme
    assert "\n".join(whole_graphs(RESULTS)) in readme
    assert "\n".join(capacities(RESULTS)) in readme


def test_a_capacity_stands_beside_the_lowest_rate_that_missed() -> None:
    at = {"ttft_p50_ms": 90.0, "ttft_p99_ms": 400.0, "tbt_p99_ms": 22.0, "requests": 60}
    steps = [{"rate_rps": rate, "attainment": 1.0 if rate < 6 else 0.5} for rate in (8, 4, 5.5, 6)]
    row = {"system": "a/slo", "capacity_rps": 5.4, "at_capacity": at, "steps": steps}
    found = capacity_row("code | 25", row)
    assert found == "| code | 25 | `a/slo` | 5.5 | 6.0 | 90 / 400 | 22 | 60 |"
