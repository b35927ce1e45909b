"""The embedded server, started for real."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nats
import psutil
import pytest

from infra.nats import EmbeddedNats, NatsServerError
from infra.nats import binary as binary_module

STARTS_A_SERVER_AND_SAYS_ITS_PID = """
import sys
from infra.nats import EmbeddedNats
server = EmbeddedNats()
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


async def test_a_started_server_takes_messages_and_keeps_streams() -> None:
    async with EmbeddedNats() as server:
        client = await nats.connect(server.url)
        account = await client.jetstream().account_info()
        await client.close()

    assert account.streams == 0


async def test_a_payload_of_eight_mebibytes_is_taken() -> None:
    async with EmbeddedNats() as server:
        client = await nats.connect(server.url)
        limit = client.max_payload
        await client.close()

    assert limit == 8 * 1024 * 1024


def test_two_servers_on_any_port_do_not_meet() -> None:
    with EmbeddedNats() as one, EmbeddedNats() as other:
        assert one.url != other.url


def test_a_port_in_use_is_said_to_be_in_use() -> None:
    with (
        EmbeddedNats() as one,
        pytest.raises(NatsServerError, match="address already in use"),
        EmbeddedNats(port=port_of(one.url)),
    ):
        pass


def test_a_failed_start_leaves_a_server_that_can_be_asked_to_stop() -> None:
    with EmbeddedNats() as one:
        other = EmbeddedNats(port=port_of(one.url))
        with pytest.raises(NatsServerError):
            other.start()

    other.stop()


def test_monitoring_is_off_unless_asked_for() -> None:
    with EmbeddedNats() as silent, EmbeddedNats(monitor_port=0) as watched:
        assert port_of(watched.monitor_url) > 0
        with pytest.raises(NatsServerError, match="no monitoring address"):
            _ = silent.monitor_url


def test_after_stop_process_and_folder_are_gone() -> None:
    server = EmbeddedNats()
    server.start()
    pid = server.pid
    folder = Path(psutil.Process(pid).cmdline()[-1]).parent

    server.stop()

    assert not psutil.pid_exists(pid)
    assert not folder.exists()


def test_a_store_folder_that_was_given_stays(tmp_path: Path) -> None:
    with EmbeddedNats(store_dir=tmp_path / "store"):
        pass

    assert (tmp_path / "store").is_dir()


def test_a_server_is_not_started_twice() -> None:
    with EmbeddedNats() as server, pytest.raises(NatsServerError, match="already running"):
        server.start()


def test_the_url_of_a_server_that_is_not_started_is_refused() -> None:
    with pytest.raises(NatsServerError, match="is it started"):
        _ = EmbeddedNats().url


def test_the_server_dies_with_a_parent_that_was_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTS_A_SERVER_AND_SAYS_ITS_PID],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdin is not None and parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))

    os.kill(parent.pid, signal.SIGKILL)

    parent.wait(5)
    parent.stdin.close()
    parent.stdout.close()
    assert psutil.wait_procs([server], timeout=5)[1] == []


def test_the_program_of_this_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    assert binary_module.find_nats_server() == Path(sys.prefix) / "bin" / "nats-server"


def test_a_missing_program_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_module, "PROGRAM", "nats-server-that-is-not-there")

    with pytest.raises(NatsServerError, match="scripts/setup"):
        binary_module.find_nats_server()
