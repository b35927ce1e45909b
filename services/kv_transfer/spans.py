"""A handoff's part of its request's trace: the transfer, and which of it anybody waited for."""

from services.kv_transfer.handoff import Close
from shared.schemas.handoff import Transport
from shared.tracing import record_span


def record_transfer(close: Close, traceparent: str | None, transport: Transport) -> None:
    """Record a handoff that is over."""
    if traceparent is None:
        return
    ready_s = close.ready_at_s if close.ready_at_s is not None else close.released_at_s
    # Beta may wait before the first chunk is reported: an engine tells it with its next step.
    exposed_since_s = ready_s - close.exposed_s
    start_s = min(close.streaming_at_s or close.opened_at_s, exposed_since_s)
    end_s = max(close.adopted_at_s or ready_s, ready_s)
    headers = record_span(
        {"traceparent": traceparent},
        "transfer",
        start_s,
        end_s,
        {
            "dynaserve.alpha": close.alpha_id,
            "dynaserve.beta": close.beta_id,
            "dynaserve.outcome": close.outcome,
            "dynaserve.transport": transport,
            "dynaserve.bytes": close.num_bytes,
            "dynaserve.link_busy_s": close.transfer_s,
        },
    )
    if close.outcome == "adopted":
        record_span(headers, "transfer hidden", start_s, exposed_since_s)
        record_span(headers, "transfer exposed", exposed_since_s, end_s)
