"""One module a board; each gives a ``board()``."""

from collections.abc import Callable

from grafana_foundation_sdk.builders.dashboard import Dashboard

from infra.grafana.boards import fleet, instances, requests, scheduler, transfers

BOARDS: dict[str, Callable[[], Dashboard]] = {
    "fleet": fleet.board,
    "requests": requests.board,
    "instances": instances.board,
    "transfers": transfers.board,
    "scheduler": scheduler.board,
}
