"""Sending the boards to a Grafana."""

from collections.abc import Iterator

import pytest

from dynaserve.cli.app import main
from infra.grafana.boards import BOARDS
from infra.grafana.push import GrafanaRefused, Target, push
from tests.unit.infra.grafana.fake_grafana import TOKEN, FakeGrafana


@pytest.fixture
def grafana() -> Iterator[FakeGrafana]:
    with FakeGrafana() as running:
        yield running


def target(grafana: FakeGrafana, token: str | None = TOKEN) -> Target:
    return Target(grafana.url, token, "http://prometheus:9090", "http://tempo:3200")


def test_a_push_makes_the_folder_the_sources_and_every_board(grafana: FakeGrafana) -> None:
    push(target(grafana))
    assert set(grafana.folders) == {"dynaserve"}
    assert {s["type"]: s["url"] for s in grafana.sources.values()} == {
        "prometheus": "http://prometheus:9090",
        "tempo": "http://tempo:3200",
    }
    assert set(grafana.boards) == {f"dynaserve-{name}" for name in BOARDS}
    assert {board["meta"]["folderUid"] for board in grafana.boards.values()} == {"dynaserve"}


def test_a_second_push_writes_nothing(grafana: FakeGrafana) -> None:
    push(target(grafana))
    grafana.writes.clear()
    told = push(target(grafana))
    assert grafana.writes == []
    assert all(line.endswith(": there") for line in told)


def test_what_somebody_changed_is_put_right(grafana: FakeGrafana) -> None:
    push(target(grafana))
    grafana.boards["dynaserve-fleet"]["dashboard"]["title"] = "mine"
    grafana.sources["dynaserve-prometheus"]["url"] = "http://elsewhere"
    grafana.writes.clear()
    push(target(grafana))
    assert grafana.writes == ["/api/datasources/uid/dynaserve-prometheus", "/api/dashboards/db"]


def test_data_sources_are_left_alone_unless_asked_for(grafana: FakeGrafana) -> None:
    push(Target(grafana.url, TOKEN))
    assert grafana.sources == {}


@pytest.mark.parametrize(
    ("token", "said"), [("wrong", "a credential is wrong"), (None, "a credential is needed")]
)
def test_a_wrong_or_missing_credential_is_said_with_the_way_out(
    grafana: FakeGrafana, token: str | None, said: str
) -> None:
    with pytest.raises(GrafanaRefused, match=f"{said}: give --token"):
        push(target(grafana, token))


def test_a_credential_without_the_role_is_told_which_one_it_needs() -> None:
    with FakeGrafana(status=403) as grafana, pytest.raises(GrafanaRefused, match="role Editor"):
        push(target(grafana))


def test_a_grafana_in_trouble_is_told_as_it_says() -> None:
    with FakeGrafana(status=500) as grafana, pytest.raises(GrafanaRefused, match="not for you"):
        push(target(grafana))


def test_nobody_there_is_one_line_and_status_1() -> None:
    with FakeGrafana() as grafana:
        url = grafana.url
    with pytest.raises(SystemExit, match="no Grafana answers at"):
        main(["dashboards", "push", "--grafana", url, "--token", TOKEN])


def test_the_verb_pushes_and_tells_each_thing(
    grafana: FakeGrafana, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dashboards", "push", "--grafana", grafana.url, "--token", TOKEN])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(BOARDS)
