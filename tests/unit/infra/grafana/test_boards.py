"""The boards as they are checked in."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from infra.grafana.generate import FOLDER, generate

BOARDS = {name: json.loads(text) for name, text in generate().items()}


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in board["panels"]:
        yield from panel.get("panels", []) if panel["type"] == "row" else [panel]


def test_the_checked_in_json_is_what_the_code_makes() -> None:
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == generate(), (
        "run python -m infra.grafana"
    )


@pytest.mark.parametrize("name", BOARDS)
def test_what_is_checked_in_reads_back_as_the_types_of_grafanas_schema(name: str) -> None:
    """A field the schema does not know is lost on the way, one of a wrong type breaks it."""
    register_default_plugins()
    text = (FOLDER / name).read_text()
    board = Dashboard.from_json(json.loads(text))
    assert JSONEncoder(sort_keys=True, indent=2).encode(board) + "\n" == text
    shown: list[Any] = board.panels or []
    kinds = {type(query).__name__ for panel in shown for query in vars(panel).get("targets") or []}
    assert kinds and kinds <= {"Dataquery", "TempoQuery"}  # what is not known stays a dict


def test_boards_have_names_of_their_own() -> None:
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)
    assert len({board["title"] for board in BOARDS.values()}) == len(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_says_what_it_shows(name: str) -> None:
    for panel in panels(BOARDS[name]):
        if panel["type"] != "text":
            assert panel["title"] and panel["description"], panel
            assert panel["targets"], panel["title"]


@pytest.mark.parametrize("name", BOARDS)
def test_every_query_keeps_to_the_pool_that_was_chosen(name: str) -> None:
    for panel in panels(BOARDS[name]):
        for target in panel.get("targets", []):
            if "expr" in target:
                assert 'pool=~"$pool"' in target["expr"] or target["expr"].startswith("vector(")


@pytest.mark.parametrize("objective", ["ttft", "tbt"])
def test_latency_stands_beside_its_objective(objective: str) -> None:
    lines = [
        target["expr"] for panel in panels(BOARDS["fleet.json"]) for target in panel["targets"]
    ]
    asked = f'slo_class=~"$slo_class", objective="{objective}"'
    wanted = f'dynaserve_slo_objective_seconds{{pool=~"$pool", {asked}}}'
    assert any(wanted in line for line in lines)
