"""The PromQL of our boards, as Grafana would send it."""

import json
from collections.abc import Iterator
from typing import Any

from infra.grafana.generate import generate

VARIABLES = {"$pool": ".*", "$slo_class": ".*", "$__rate_interval": "20s"}


def queries() -> list[tuple[str, str]]:
    """(board and panel, query) of every panel, variables filled in."""
    return [(f"{board} / {panel}", query) for board, panel, query in _all()]


def queries_of(board: str, panel: str) -> list[str]:
    """The queries of one panel, by the titles people see."""
    return [query for b, p, query in _all() if (b, p) == (f"DynaServe: {board}", panel)]


def _all() -> Iterator[tuple[str, str, str]]:
    for text in generate().values():
        board: dict[str, Any] = json.loads(text)
        for panel in board["panels"]:
            for inner in panel.get("panels") or [panel]:
                for target in inner.get("targets", []):
                    if query := target.get("expr"):
                        yield board["title"], inner["title"], _filled(query)


def _filled(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query
