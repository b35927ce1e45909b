"""The part of Grafana's HTTP API that a push uses, in memory, on a loopback port.

It refuses what Grafana refuses, as its documentation has it: a second folder or data source of one
name, a board in a folder that is not there or over one that is, too long uids, other paths.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

TOKEN = "right"
MAX_UID = 40
Answer = tuple[int, dict[str, Any]]


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

    def read(self, path: str) -> Answer:
        kind, _, uid = path.removeprefix("/api/").rpartition("/")
        held = {
            "folders": self.folders,
            "datasources/uid": self.sources,
            "dashboards/uid": self.boards,
        }
        found = held.get(kind, {}).get(uid)
        return (200, found) if found is not None else (404, {"message": "not found"})

    def write(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        status, answer = self._write(method, path, body)
        if status == 200:
            self.writes.append(path)
        return status, answer

    def _write(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        match method, path.split("/")[2:]:
            case "POST", ["folders"]:
                return self._hold(self.folders, body, body["uid"] not in self.folders, 412)
            case "POST", ["datasources"]:
                names = {source["name"] for source in self.sources.values()}
                is_new = body["uid"] not in self.sources and body["name"] not in names
                return self._hold(self.sources, {"id": 1, **body}, is_new, 409)
            case "PUT", ["datasources", "uid", uid]:
                return self._hold(self.sources, {"id": 1, **body}, uid in self.sources, 404)
            case "POST", ["dashboards", "db"]:
                return self._save(body)
        return 404, {"message": f"no {method} {path}"}

    def _hold(
        self, held: dict[str, dict[str, Any]], what: dict[str, Any], may: bool, status: int
    ) -> Answer:
        if len(what["uid"]) > MAX_UID:
            return 400, {"message": "uid too long"}
        if not may:
            return status, {"message": "not as things are"}
        held[what["uid"]] = what
        return 200, {"message": "done", **what}

    def _save(self, body: dict[str, Any]) -> Answer:
        board, folder = body["dashboard"], body.get("folderUid")
        known = self.boards.get(board["uid"])
        if folder is not None and folder not in self.folders:
            return 400, {"message": "folder not found"}
        if known is not None and not body.get("overwrite"):
            return 412, {"message": "a dashboard with the same uid already exists"}
        if not board.get("title") or len(board["uid"]) > MAX_UID:
            return 400, {"message": "bad dashboard"}
        version = known["dashboard"]["version"] + 1 if known is not None else 1
        self.boards[board["uid"]] = {
            "dashboard": {**board, "id": 7, "version": version},
            "meta": {"folderUid": folder, "version": version},
        }
        return 200, {"status": "success", "uid": board["uid"], "version": version}

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
            self._answer(*self.grafana.read(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._refused():
            self._answer(*self.grafana.write(self.command, self.path, body))

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
