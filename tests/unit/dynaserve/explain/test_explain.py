"""The verb: where records come from, and what is printed."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dynaserve.cli.app import main
from dynaserve.cli.explain import to_json
from shared.archive import Found, RecordArchive
from shared.bus_nats import NatsBus
from shared.subjects import Subjects
from tests.unit.shared.explanation.records import cut_record, handoff


class Answers(BaseHTTPRequestHandler):
    """A gateway that knows of one request."""

    def do_GET(self) -> None:
        known = self.path == "/dynaserve/requests/a%2Fb%20c"
        self.send_response(200 if known else 404 if "dynaserve" in self.path else 500)
        self.end_headers()
        self.wfile.write(to_json(Found([cut_record()], [handoff()])).encode() if known else b"{}")

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def gateway() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["explain", *arguments])
    code = ended.value.code
    return code if isinstance(code, int) else 1


def test_a_gateways_answer_is_explained(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a/b c", "--url", gateway) == 0
    assert "Met both objectives" in capsys.readouterr().out


def test_json_is_what_the_gateway_gives(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a/b c", "--url", gateway, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["requests"][0]["http_request_id"] == "h"
    assert told["explanations"][0]["verdict"].startswith("Met both objectives")
    assert told["handoffs"][0]["outcome"] == "adopted"


def test_an_unknown_request_is_one_line_and_status_1(gateway: str) -> None:
    with pytest.raises(SystemExit, match="no record of 'nobody'"):
        main(["explain", "nobody", "--url", gateway])


def test_a_gateway_that_is_not_there_is_one_line() -> None:
    with pytest.raises(SystemExit, match=r"no gateway answers at http://127\.0\.0\.1:1 "):
        main(["explain", "x", "--url", "http://127.0.0.1:1"])


async def test_the_bus_answers_without_any_gateway(
    nats_url: str, pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from dynaserve.explain.fetch import NoRecord, from_bus

    subjects = Subjects(pool)
    bus = await NatsBus.connect(nats_url, "test")
    await RecordArchive(bus, subjects).ensure()
    await bus.publish(subjects.handoff_events, handoff())
    await bus.publish(subjects.request_events, cut_record())
    await bus.close()
    found = await from_bus(nats_url, pool, "h")
    assert [r.request_id for r in found.requests] == ["r"]
    assert [h.handoff_id for h in found.handoffs] == ["r.1"]
    with pytest.raises(NoRecord, match="no record of 'other'"):
        await from_bus(nats_url, pool, "other")
