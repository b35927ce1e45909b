"""An OTLP collector in memory: what services send over HTTP, as plain spans."""

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Recorded:
    """One span. Unix seconds."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_s: float
    end_s: float
    attributes: dict[str, str | int | float | bool] = field(default_factory=dict)


class Collector:
    """Listens on a loopback port while it is entered."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._traces: defaultdict[str, list[Recorded]] = defaultdict(list)
        handler = type("Handler", (_Handler,), {"collector": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def trace(self, request_id: str, names: set[str], timeout_s: float = 20.0) -> list[Recorded]:
        """All spans of the trace of an HTTP request, once spans of these names are there."""

        def found() -> list[Recorded]:
            for spans in self._traces.values():
                if any(s.attributes.get("dynaserve.http_request_id") == request_id for s in spans):
                    return list(spans)
            return []

        with self._changed:
            if not self._changed.wait_for(
                lambda: names <= {span.name for span in found()}, timeout_s
            ):
                raise TimeoutError(f"of {names} only {[span.name for span in found()]} came")
            return found()

    def num_traces(self) -> int:
        with self._changed:
            return len(self._traces)

    def take(self, request: ExportTraceServiceRequest) -> None:
        with self._changed:
            for resource in request.resource_spans:
                named = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        recorded = Recorded(
                            service=named["service.name"],
                            name=span.name,
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            start_s=span.start_time_unix_nano / 1e9,
                            end_s=span.end_time_unix_nano / 1e9,
                            attributes={
                                a.key: getattr(a.value, a.value.WhichOneof("value") or "int_value")
                                for a in span.attributes
                            },
                        )
                        self._traces[recorded.trace_id].append(recorded)
            self._changed.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    collector: Collector
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.collector.take(ExportTraceServiceRequest.FromString(body))
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_args: object) -> None:
        """Nothing on the terminal."""
