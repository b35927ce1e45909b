"""Traces by OpenTelemetry: one trace per request, its spans made by whoever did the work.

Off until ``start_tracing`` is called, and then a request is traced when its ``traceparent`` says
so. Spans are recorded when their part is over, with the times it had: nothing is done on the hot
path. The context of a request travels as W3C ``traceparent`` inside the messages.
"""

import os
from collections.abc import Mapping
from typing import Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Attributes = Mapping[str, str | int | float | bool]

FLUSH_MS = 3000
ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
TRACES_PATH = "/v1/traces"

_w3c = TraceContextTextMapPropagator()
_provider: TracerProvider | None = None


def endpoint_from_environment() -> str | None:
    """Where OpenTelemetry's own variables send traces; None: nowhere."""
    return next((os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)), None)


def start_tracing(
    service: str,
    instance_id: str,
    endpoint: str | None,
    sample_ratio: float = 1.0,
    exporter: SpanExporter | None = None,
) -> None:
    """Send spans to ``endpoint`` by OTLP/HTTP from now on; None leaves tracing off.

    ``sample_ratio`` is the share of requests that are traced of those that come without a
    ``traceparent``; one that has it is traced when it says so.
    """
    global _provider
    if endpoint is None and exporter is None:
        return
    resource = Resource.create(
        {"service.name": f"dynaserve.{service}", "service.instance.id": instance_id}
    )
    provider = TracerProvider(
        resource=resource, sampler=ParentBased(TraceIdRatioBased(sample_ratio))
    )
    provider.add_span_processor(BatchSpanProcessor(exporter or _otlp(endpoint or "")))
    _provider = provider


def stop_tracing() -> None:
    """Send what is left, for at most a few seconds."""
    global _provider
    if _provider is not None:
        _provider.force_flush(FLUSH_MS)
        _provider.shutdown()
        _provider = None


def is_on() -> bool:
    return _provider is not None


def _otlp(endpoint: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    url = endpoint if endpoint.endswith(TRACES_PATH) else endpoint.rstrip("/") + TRACES_PATH
    return OTLPSpanExporter(endpoint=url, timeout=2)


class RequestSpan:
    """The span of a whole request, from its first byte on; parts of it are recorded below it."""

    def __init__(self, span: Span) -> None:
        self._span = span

    @classmethod
    def begin(
        cls, name: str, start_s: float, headers: Mapping[str, str] | None, attributes: Attributes
    ) -> Self | None:
        """Under the caller's ``traceparent`` if there is one; None when tracing is off."""
        if _provider is None:
            return None
        parent = _w3c.extract(headers or {}, Context())
        span = _tracer(_provider).start_span(
            name, parent, SpanKind.SERVER, dict(attributes), start_time=_ns(start_s)
        )
        return cls(span)

    @property
    def headers(self) -> dict[str, str]:
        """What tells others of this span, also when it is not sampled."""
        carrier: dict[str, str] = {}
        _w3c.inject(carrier, trace.set_span_in_context(self._span, Context()))
        return carrier

    def end(self, end_s: float, attributes: Attributes, error: str | None = None) -> None:
        self._span.set_attributes(dict(attributes))
        if error is not None:
            self._span.set_status(StatusCode.ERROR, error)
        self._span.end(_ns(end_s))


def record_span(
    headers: Mapping[str, str] | None,
    name: str,
    start_s: float,
    end_s: float,
    attributes: Attributes | None = None,
) -> dict[str, str] | None:
    """Record a part of a request that is over; returns headers for parts of that part.

    Unix seconds. Does nothing when tracing is off or the request is not traced.
    """
    if _provider is None or not headers or not _is_sampled(headers.get("traceparent", "")):
        return None
    parent = _w3c.extract(headers, Context())
    span = _tracer(_provider).start_span(
        name, parent, attributes=dict(attributes or {}), start_time=_ns(start_s)
    )
    span.end(_ns(max(start_s, end_s)))
    carrier: dict[str, str] = {}
    _w3c.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier


def _is_sampled(traceparent: str) -> bool:
    try:
        return bool(int(traceparent[-2:], 16) & 1)
    except ValueError:
        return False


def _tracer(provider: TracerProvider) -> trace.Tracer:
    return provider.get_tracer("dynaserve")


def _ns(unix_s: float) -> int:
    return int(unix_s * 1e9)
