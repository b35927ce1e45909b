"""Sends the boards to a Grafana: folder, data sources, boards. Doing it again changes nothing."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from grafana_client import GrafanaApi
from grafana_client.client import GrafanaClientError, GrafanaException

from infra.grafana.generate import generate
from shared.errors import DynaServeError

T = TypeVar("T")

FOLDER_UID = "dynaserve"
FOLDER_TITLE = "DynaServe"
TIMEOUT_S = 10.0
NOT_FOUND = 404


class GrafanaRefused(DynaServeError):
    """Grafana is not there or does not let us; the message says what to do."""


@dataclass(frozen=True)
class Target:
    """A Grafana and what its boards read from. URLs of data sources are as Grafana reaches them."""

    url: str
    credential: str | tuple[str, str] | None = None
    prometheus_url: str | None = None
    tempo_url: str | None = None


def push(target: Target) -> list[str]:
    """Make Grafana hold our boards; returns a line for each thing done. Raises GrafanaRefused."""
    api = GrafanaApi.from_url(target.url, target.credential, timeout=TIMEOUT_S)

    def ask(what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except GrafanaException as error:
            raise GrafanaRefused(_explained(target, what, error)) from error
        except OSError as error:
            raise GrafanaRefused(f"no Grafana answers at {target.url}: {error}") from error

    done = [ask("see whether the folder exists", lambda: _ensure_folder(api))]
    sources = {"prometheus": target.prometheus_url, "tempo": target.tempo_url}
    for kind, url in sources.items():
        if url is not None:
            done.append(
                ask("set up a data source", lambda k=kind, u=url: _ensure_source(api, k, u))  # type: ignore[misc]
            )
    for name, text in generate().items():
        done.append(ask(f"save the board {name}", lambda t=text: _save(api, t)))  # type: ignore[misc]
    return done


def _ensure_folder(api: GrafanaApi) -> str:
    if _found(lambda: api.folder.get_folder(FOLDER_UID)) is not None:
        return f"folder {FOLDER_TITLE}: there"
    api.folder.create_folder(FOLDER_TITLE, FOLDER_UID)
    return f"folder {FOLDER_TITLE}: made"


def _ensure_source(api: GrafanaApi, kind: str, url: str) -> str:
    uid = f"dynaserve-{kind}"
    wanted = {
        "uid": uid,
        "name": f"DynaServe {kind}",
        "type": kind,
        "url": url,
        "access": "proxy",
        "isDefault": False,
    }
    known = _found(lambda: api.datasource.get_datasource_by_uid(uid))
    if known is None:
        api.datasource.create_datasource(wanted)
        return f"data source {uid}: made"
    if all(known.get(name) == value for name, value in wanted.items()):
        return f"data source {uid}: there"
    api.datasource.update_datasource_by_uid(uid, wanted)
    return f"data source {uid}: changed"


def _save(api: GrafanaApi, text: str) -> str:
    board = json.loads(text)
    known = _found(lambda: api.dashboard.get_dashboard(board["uid"]))
    if known is not None and _same(known["dashboard"], board):
        return f"board {board['title']}: there"
    api.dashboard.update_dashboard(
        {
            "dashboard": board,
            "folderUid": FOLDER_UID,
            "overwrite": True,
            "message": "dynaserve dashboards push",
        }
    )
    return f"board {board['title']}: {'made' if known is None else 'changed'}"


def _same(known: dict[str, object], wanted: dict[str, object]) -> bool:
    """Grafana adds a number and a version of its own."""
    own = ("id", "version")
    return {k: v for k, v in known.items() if k not in own} == {
        k: v for k, v in wanted.items() if k not in own
    }


def _found(get: Callable[[], T]) -> T | None:
    try:
        return get()
    except GrafanaClientError as error:
        if error.status_code == NOT_FOUND:
            return None
        raise


def _explained(target: Target, what: str, error: GrafanaException) -> str:
    if error.status_code == 401:
        how = "is wrong" if target.credential else "is needed"
        return f"{target.url}: a credential {how}: give --token, or --user and --password"
    if error.status_code == 403:
        return (
            f"{target.url}: the credential may not {what}: it needs the role Editor, "
            "and Admin for --prometheus and --tempo"
        )
    return f"{target.url}: could not {what}: {error.message}"
