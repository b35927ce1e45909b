"""A segment's part of its request's trace: waiting for KV, queueing, computing."""

from services.gpu_instance.ledger import LiveSegment
from shared.schemas.tokens import SegmentTiming
from shared.tracing import record_span


def record_segment(live: LiveSegment, timing: SegmentTiming, how: str) -> None:
    """Record a segment that is over; ``how`` it ended."""
    headers = live.segment.request.trace_headers
    attributes: dict[str, str | int | float | bool] = {
        "dynaserve.instance": timing.instance_id,
        "dynaserve.epoch": timing.epoch,
    }
    if live.segment.sent_s is not None:
        record_span(headers, "dispatch", live.segment.sent_s, timing.received_s, attributes)
    queued_since_s = timing.received_s
    if timing.role == "beta":
        queued_since_s = _end_of_wait_s(live, timing)
        record_span(headers, "wait for KV", timing.received_s, queued_since_s, attributes)
    computing_since_s = timing.ended_s if timing.started_s is None else timing.started_s
    record_span(headers, "queue", queued_since_s, computing_since_s, attributes)
    if timing.started_s is not None:
        ended = {**attributes, "dynaserve.ended": how}
        record_span(headers, timing.role, timing.started_s, timing.ended_s, ended)


def _end_of_wait_s(live: LiveSegment, timing: SegmentTiming) -> float:
    """A segment that never ran may have waited to its end."""
    settled_s = timing.ended_s if live.settled_s is None else live.settled_s
    return settled_s if timing.started_s is None else min(settled_s, timing.started_s)
