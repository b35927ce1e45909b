"""The ramps of the GPU suite."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_suite import capacity
from benchmarks.gpu_suite.cells import CELLS
from dynaserve.bench.settings import BenchSettings

GIVEN = Namespace(
    traces=Path("benchmarks/traces"),
    rate_factor=1.0,
    instances=1,
    cpu=False,
    seconds=4.0,
    seed=0,
    repeats=1,
    port=8000,
    gateways=2,
    fixed_systems=["colocated/static:512"],
    slo_systems=["dynaserve/slo"],
    ramp_s=60.0,
)


async def test_systems_without_enough_time_are_skipped_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[BenchSettings] = []

    async def bench(settings: BenchSettings, _board: object) -> object:
        asked.append(settings)
        return settings

    def rows_of(_result: object) -> list[dict[str, Any]]:
        return [{"capacity_rps": 3.0}]

    monkeypatch.setattr(capacity, "bench", bench)
    monkeypatch.setattr(capacity, "rows_of", rows_of)
    left_s = iter([100.0, 50.0])
    target = tmp_path / "capacity_code_25.json"
    found = await capacity.run_cell(
        GIVEN, CELLS[0], 25, "nats://127.0.0.1:4222", {}, target, lambda: next(left_s)
    )

    assert found == {"colocated/static:512": 3.0, "dynaserve/slo": "skipped"}
    assert [each.ramp for each in asked] == [True]
    assert asked[0].request_rate == 0.5 * CELLS[0].rate_rps
    assert target.exists()
