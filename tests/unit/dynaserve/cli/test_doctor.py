"""``dynaserve doctor`` as typed by a user, on this host, with and without a server."""

import json
import socket
from pathlib import Path

import pytest
from rich.console import Console

from dynaserve.cli import app, doctor
from dynaserve.doctor.finding import fail, ok, warn


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        app.main(["doctor", *arguments])
    return ended.value.code


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def statuses(report: Path) -> dict[str, str]:
    findings = json.loads(report.read_text())["findings"]
    return {finding["name"]: finding["status"] for finding in findings}


def test_a_healthy_host_with_a_server_and_no_pool_is_fine(
    nats_url: str, pool: str, free_port: int, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"

    status = run(
        "--nats", nats_url, "--pool", pool, "--port", str(free_port), "--json", str(report)
    )

    found = statuses(report)
    assert found["nats"] == found["jetstream"] == found["pool"] == "ok"
    assert found["vllm"] == found["torch"] == found["torch companions"] == "ok"
    assert status == 0


def test_a_server_that_is_asked_for_and_away_fails(
    free_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"

    status = run("--nats", f"nats://127.0.0.1:{free_port}", "--json", str(report))

    assert status == 1
    assert json.loads(report.read_text())["ok"] is False
    assert statuses(report)["nats"] == "fail"
    assert "nats-server -js" in capsys.readouterr().out


def test_a_port_held_by_another_program_fails_and_names_it(nats_url: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]

        status = run("--nats", nats_url, "--port", str(port), "--json", str(report))

    assert status == 1
    assert statuses(report)[f"port {port}"] == "fail"


def test_warnings_alone_leave_all_well() -> None:
    report = json.loads(doctor.to_json([ok("a", "fine"), warn("b", "so so", "do c")]))

    assert report["ok"] is True
    assert report["findings"][1] == {
        "name": "b",
        "status": "warn",
        "detail": "so so",
        "mend": "do c",
    }


def test_the_way_to_mend_stands_under_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    table = doctor.table_of([ok("memory", "enough"), fail("nats", "away", "start it")])

    Console(width=80).print(table)

    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line.strip() for line in lines] == [
        "ok    memory  enough",
        "FAIL  nats    away",
        "-> start it",
    ]
