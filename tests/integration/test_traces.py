"""Traces of two real engines: one per request, without time that nothing accounts for."""

import random
import uuid
from statistics import median

import httpx
import pytest

from dynaserve.local_pool.background import BackgroundPool
from tests.integration.observed_pool import ask
from tests.integration.otlp_collector import Collector, Recorded

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

P = 600
SPAN_ID = "00f067aa0ba902b7"
WHOLE = {"request", "receive", "place", "decide", "dispatch", "queue", "whole", "deliver"}
CUT = {
    *{"request", "receive", "place", "decide", "dispatch", "queue", "alpha", "beta", "deliver"},
    *{"wait for KV", "transfer", "transfer hidden", "transfer exposed"},
}
OPAQUE = {"request", "wait for KV"}
"""Spans that cover everything and so explain nothing."""


@pytest.fixture
def traced(engine_pool: BackgroundPool) -> BackgroundPool:
    """Traces the requests that ask for it."""
    return engine_pool


def request(pool: BackgroundPool, cut: int | str, traceparent: str | None = None) -> str:
    """Send one, traced unless told otherwise; returns the id its trace can be found by."""
    request_id = uuid.uuid4().hex
    prompt = [300 + byte for byte in random.Random(request_id).randbytes(P)]  # nowhere cached
    parent = traceparent or f"00-{uuid.uuid4().hex}-{SPAN_ID}-01"
    response = httpx.post(
        f"{pool.url}/v1/completions",
        json={**ask(P, 12, cut), "prompt": prompt},
        headers={"x-request-id": request_id, "traceparent": parent},
        timeout=60,
    )
    response.raise_for_status()
    return request_id


def holes(spans: list[Recorded]) -> dict[tuple[str, str], float]:
    """What no telling span accounts for: (span before, span after) -> share of the TTFT."""
    start_s = min(span.start_s for span in spans if span.name == "request")
    end_s = next(span.end_s for span in spans if span.name == "deliver")
    found: dict[tuple[str, str], float] = {}
    at_s, before = start_s, "request"
    for span in sorted(spans, key=lambda span: span.start_s):
        if span.name in OPAQUE or span.end_s <= at_s:
            continue
        if span.start_s > at_s:
            found[before, span.name] = (min(span.start_s, end_s) - at_s) / (end_s - start_s)
        at_s, before = span.end_s, span.name
        if at_s >= end_s:
            return found
    return {**found, (before, "end"): (end_s - at_s) / (end_s - start_s)}


@pytest.mark.parametrize(
    ("cut", "names"), [("never", WHOLE), (200, CUT), (P - 1, CUT), (P, CUT), (P + 4, CUT)]
)
def test_spans_account_for_the_time_to_the_first_token(
    traced: BackgroundPool, collector: Collector, cut: int | str, names: set[str]
) -> None:
    opaque = []
    for _ in range(3):  # one may meet a hiccup of the machine
        spans = collector.trace(request(traced, cut), names)
        assert {span.name for span in spans} == names
        assert len({span.trace_id for span in spans}) == 1
        opaque.append(holes(spans))
    assert median(sum(shares.values()) for shares in opaque) <= 0.05, opaque


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
    trace_id = uuid.uuid4().hex
    before = collector.num_traces()
    request(traced, "never", f"00-{uuid.uuid4().hex}-{SPAN_ID}-00")
    found = request(traced, "never", f"00-{trace_id}-{SPAN_ID}-01")
    spans = collector.trace(found, WHOLE)
    assert {span.trace_id for span in spans} == {trace_id}
    assert next(span for span in spans if span.name == "request").parent_id == SPAN_ID
    assert collector.num_traces() == before + 1
