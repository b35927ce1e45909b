"""`dynaserve simulate`: the contract of its JSON, and what it refuses."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dynaserve.cli.simulate import simulate

app = typer.Typer()
app.command()(simulate)
RUN = CliRunner()
SHORT = ["--trace", "synthetic:500:30", "--duration-s", "10", "--warmup-s", "1"]
KEYS = {
    "goodput_rps",
    "attainment",
    "tbt_p99_ms",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "requests",
    "cut_share",
    "bound_fraction",
}


def test_a_rate_gives_every_promised_figure_and_a_picture(tmp_path: Path) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    arguments = [*SHORT, "--rate", "10", "--json", str(out), "--plot", str(picture)]
    assert RUN.invoke(app, arguments).exit_code == 0
    assert set(json.loads(out.read_text())) >= KEYS
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_capacity_search_adds_the_capacity(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert RUN.invoke(app, [*SHORT, "--find-capacity", "--json", str(out)]).exit_code == 0
    found = json.loads(out.read_text())
    assert set(found) >= KEYS | {"capacity_rps"}
    assert found["attainment"] >= 0.9


def test_auto_finds_the_instances_it_takes(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = [*SHORT, "--rate", "150", "--instances", "auto", "--json", str(out)]
    assert RUN.invoke(app, arguments).exit_code == 0
    assert json.loads(out.read_text())["instances"] > 1


@pytest.mark.parametrize(
    "wrong",
    [
        ["--policy", "magic"],
        ["--batcher", "static:0"],
        ["--instances", "0"],
        ["--find-capacity", "--rate", "3"],
        ["--lose", "soon"],
        [],
    ],
)
def test_options_that_cannot_work_are_refused(wrong: list[str]) -> None:
    assert RUN.invoke(app, [*SHORT, *wrong]).exit_code == 2


def test_a_missing_trace_is_refused() -> None:
    assert RUN.invoke(app, ["--trace", "nowhere.csv", "--rate", "1"]).exit_code == 2
