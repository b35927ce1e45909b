"""Traces of a whole pool: one per request, without time that nothing accounts for."""

import uuid
from collections.abc import Iterator

import httpx
import pytest

from dynaserve.local_pool.background import BackgroundPool
from tests.integration.observed_pool import ask, simulated_pool
from tests.integration.otlp_collector import Collector, Recorded

pytestmark = [pytest.mark.timeout(180)]

P = 600
WHOLE = {"request", "receive", "place", "decide", "dispatch", "queue", "whole", "deliver"}
CUT = {
    *{"request", "receive", "place", "decide", "dispatch", "queue", "alpha", "beta", "deliver"},
    *{"wait for KV", "transfer", "transfer hidden", "transfer exposed"},
}
OPAQUE = {"request", "wait for KV"}
"""Spans that cover everything and so explain nothing."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as listening:
        yield listening


@pytest.fixture(scope="module")
def traced(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> Iterator[BackgroundPool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        with simulated_pool(tmp_path_factory.mktemp("logs"), "traced", collector.endpoint) as pool:
            yield pool


def request(pool: BackgroundPool, cut: int | str, headers: dict[str, str] | None = None) -> str:
    """Send one; returns the id its trace can be found by."""
    request_id = uuid.uuid4().hex
    response = httpx.post(
        f"{pool.url}/v1/completions",
        json=ask(P, 12, cut),
        headers={"x-request-id": request_id, **(headers or {})},
        timeout=60,
    )
    response.raise_for_status()
    return request_id


def uncovered(spans: list[Recorded]) -> float:
    """Share of the time to the first token that no telling span accounts for."""
    start_s = min(span.start_s for span in spans if span.name == "request")
    end_s = next(span.end_s for span in spans if span.name == "deliver")
    at_s, missing_s = start_s, 0.0
    for span in sorted(spans, key=lambda span: span.start_s):
        if span.name in OPAQUE or span.end_s <= at_s:
            continue
        missing_s += max(0.0, min(span.start_s, end_s) - at_s)
        at_s = span.end_s
        if at_s >= end_s:
            break
    return (missing_s + max(0.0, end_s - at_s)) / (end_s - start_s)


@pytest.mark.parametrize(
    ("cut", "names"), [("never", WHOLE), (200, CUT), (P - 1, CUT), (P, CUT), (P + 4, CUT)]
)
def test_spans_account_for_the_time_to_the_first_token(
    traced: BackgroundPool, collector: Collector, cut: int | str, names: set[str]
) -> None:
    request(traced, cut)  # the first of its kind is slowed by imports
    spans = collector.trace(request(traced, cut), names)
    assert {span.name for span in spans} == names
    assert len({span.trace_id for span in spans}) == 1
    assert uncovered(spans) <= 0.05


def test_every_service_takes_part_in_one_trace(
    traced: BackgroundPool, collector: Collector
) -> None:
    spans = collector.trace(request(traced, P), CUT)
    by_name = {span.name: span for span in spans}
    assert {span.service for span in spans} == {
        "dynaserve.gateway",
        "dynaserve.global_sched",
        "dynaserve.gpu_instance",
        "dynaserve.kv_transfer",
    }
    root = by_name["request"]
    parts = [by_name[name] for name in ("place", "decide", "alpha", "beta", "transfer")]
    assert {span.parent_id for span in parts} == {root.span_id}
    assert by_name["transfer exposed"].parent_id == by_name["transfer"].span_id
    assert (
        by_name["alpha"].attributes["dynaserve.instance"]
        != (by_name["beta"].attributes["dynaserve.instance"])
    )
    assert root.attributes["gen_ai.usage.output_tokens"] == 12


def test_a_clients_trace_goes_on_and_one_that_it_does_not_sample_is_not_recorded(
    traced: BackgroundPool, collector: Collector
) -> None:
    trace_id, span_id = uuid.uuid4().hex, "00f067aa0ba902b7"
    before = collector.num_traces()
    unsampled = f"00-{uuid.uuid4().hex}-{span_id}-00"
    request(traced, "never", {"traceparent": unsampled})
    found = request(traced, "never", {"traceparent": f"00-{trace_id}-{span_id}-01"})
    spans = collector.trace(found, WHOLE)
    assert {span.trace_id for span in spans} == {trace_id}
    assert next(span for span in spans if span.name == "request").parent_id == span_id
    assert collector.num_traces() == before + 1
