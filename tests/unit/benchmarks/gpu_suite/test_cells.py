"""Cells as the command line names them."""

import pytest

from benchmarks.gpu_suite.cells import wanted_cells


def test_a_cell_has_all_objectives_or_its_own() -> None:
    found = wanted_cells(["code", "conv:50"], [100, 50])
    assert [(cell.name, tbt_ms) for cell, tbt_ms in found] == [("code", (100, 50)), ("conv", (50,))]


def test_a_cell_that_does_not_exist_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="summarization"):
        wanted_cells(["cod"], [100])
