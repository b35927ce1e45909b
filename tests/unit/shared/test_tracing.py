"""Traces: nothing while off, the caller's context honoured, times as they were."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared import tracing
from shared.tracing import RequestSpan, record_span, start_tracing, stop_tracing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{SPAN}-00"}


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    start_tracing("test", "t", None, exporter=exporter)
    yield exporter
    stop_tracing()


def names(exporter: InMemorySpanExporter) -> list[str]:
    assert tracing._provider is not None
    tracing._provider.force_flush()
    return [span.name for span in exporter.get_finished_spans()]


def test_off_nothing_is_made() -> None:
    start_tracing("test", "t", None)
    assert not tracing.is_on()
    assert RequestSpan.begin("request", 1.0, SAMPLED, {}) is None
    assert record_span(SAMPLED, "part", 1.0, 2.0) is None


def test_a_part_is_recorded_under_its_request_with_its_own_times(
    exported: InMemorySpanExporter,
) -> None:
    span = RequestSpan.begin("request", 10.0, SAMPLED, {"a": 1})
    assert span is not None
    record_span(span.headers, "part", 11.0, 12.5, {"b": "x"})
    span.end(13.0, {"c": True}, error="it broke")
    assert names(exported) == ["part", "request"]
    part, request = exported.get_finished_spans()
    assert part.parent is not None and request.context is not None and request.parent is not None
    assert part.parent.span_id == request.context.span_id
    assert format(request.context.trace_id, "032x") == TRACE
    assert format(request.parent.span_id, "016x") == SPAN
    assert (part.start_time, part.end_time) == (11_000_000_000, 12_500_000_000)
    assert dict(request.attributes or {}) == {"a": 1, "c": True}
    assert request.status.description == "it broke"


def test_what_the_caller_does_not_sample_is_not_recorded_but_passed_on(
    exported: InMemorySpanExporter,
) -> None:
    span = RequestSpan.begin("request", 1.0, UNSAMPLED, {})
    assert span is not None
    assert span.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert span.headers["traceparent"].endswith("-00")
    assert record_span(span.headers, "part", 1.0, 2.0) is None
    span.end(2.0, {})
    assert names(exported) == []


@pytest.mark.parametrize("headers", [None, {}, {"traceparent": "nonsense"}])
def test_a_part_of_no_request_is_not_recorded(
    exported: InMemorySpanExporter, headers: dict[str, str] | None
) -> None:
    assert record_span(headers, "part", 1.0, 2.0) is None
    assert names(exported) == []


def test_a_part_that_ends_before_it_begins_has_no_length(exported: InMemorySpanExporter) -> None:
    record_span(SAMPLED, "part", 2.0, 1.0)
    assert names(exported) == ["part"]
    (part,) = exported.get_finished_spans()
    assert part.start_time == part.end_time


def test_a_share_of_the_requests_is_traced() -> None:
    exporter = InMemorySpanExporter()
    start_tracing("test", "t", None, sample_ratio=0.0, exporter=exporter)
    span = RequestSpan.begin("request", 1.0, None, {})
    assert span is not None
    assert int(span.headers["traceparent"][-2:], 16) & 1 == 0
    stop_tracing()


def test_the_endpoint_comes_from_opentelemetrys_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://here:4318")
    assert tracing.endpoint_from_environment() == "http://here:4318"
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    assert tracing.endpoint_from_environment() is None
