"""The part of Grafana's HTTP API that a push uses, in memory, on a loopback port."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

TOKEN = "right"


class FakeGrafana:
    """Holds what was pushed; ``writes`` lists every request that changed something."""

    def __init__(self, status: int = 200) -> None:
        self.folders: dict[str, dict[str, Any]] = {}
        self.sources: dict[str, dict[str, Any]] = {}
        self.boards: dict[str, dict[str, Any]] = {}
        self.writes: list[str] = []
        self.status = status
        handler = type("Handler", (_Handler,), {"grafana": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def read(self, path: str) -> dict[str, Any] | None:
        kind, _, uid = path.removeprefix("/api/").rpartition("/")
        if kind == "dashboards/uid":
            held = self.boards.get(uid)
            return held and {"dashboard": held["dashboard"], "meta": {}}
        return {"folders": self.folders, "datasources/uid": self.sources}[kind].get(uid)

    def write(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.writes.append(path)
        if path == "/api/folders":
            self.folders[body["uid"]] = body
        elif path.startswith("/api/datasources"):
            self.sources[body["uid"]] = {"id": 1, **body}
        elif path == "/api/dashboards/db":
            board = {**body["dashboard"], "id": 7, "version": 3}
            self.boards[board["uid"]] = {**body, "dashboard": board}
        return {"message": "done"}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    grafana: FakeGrafana

    def do_GET(self) -> None:
        if not self._refused():
            found = self.grafana.read(self.path)
            self._answer(200 if found is not None else 404, found or {"message": "not found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._refused():
            self._answer(200, self.grafana.write(self.path, body))

    do_PUT = do_POST

    def _refused(self) -> bool:
        if self.grafana.status != 200:
            self._answer(self.grafana.status, {"message": "not for you"})
        elif self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"message": "Invalid API key"})
        else:
            return False
        return True

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_args: object) -> None:
        """Nothing on the terminal."""
