"""The waterfall of a request: from its record to bars with a beginning and an end. Pure.

Times of different hosts are put on one axis as they are; a bar never begins before the request
nor ends before it begins.
"""

from collections.abc import Iterable, Iterator, Mapping

from shared.explanation.model import Lane, Span, SpanKind
from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffRecord
from shared.schemas.tokens import SegmentTiming


def spans_of(record: RequestRecord, handoffs: Iterable[HandoffRecord] = ()) -> list[Span]:
    """All bars, in the order they begin."""
    by_epoch = {handoff.epoch: handoff for handoff in handoffs}
    spans = list(_placing(record))
    for epoch in sorted({timing.epoch for timing in record.segments}):
        axis = _Axis(record, epoch)
        timings: dict[Lane, SegmentTiming] = {
            t.role: t for t in record.segments if t.epoch == epoch
        }
        if epoch < record.epochs:
            lost = timings.values()
            spans += [axis.span("lost", t.role, t, t.received_s, t.ended_s) for t in lost]
            continue
        spans += _delivery(axis, spans, timings)
        for timing in timings.values():
            spans += _segment(axis, timing, timings.get("alpha"), record)
        spans += _transfer(axis, timings, by_epoch.get(epoch))
    return sorted((s for s in spans if s.end_s > s.start_s), key=lambda s: (s.start_s, s.end_s))


def accounted(spans: Iterable[Span], until_s: float) -> float:
    """Share of [0, until_s] that lies under at least one bar that is not hidden."""
    covered_s, reached_s = 0.0, 0.0
    for span in sorted((s for s in spans if not s.is_hidden), key=lambda s: s.start_s):
        start_s, end_s = max(span.start_s, reached_s), min(span.end_s, until_s)
        if end_s > start_s:
            covered_s += end_s - start_s
            reached_s = end_s
    return covered_s / until_s if until_s > 0 else 1.0


class _Axis:
    """Unix times of one epoch -> seconds since the request arrived."""

    def __init__(self, record: RequestRecord, epoch: int) -> None:
        self._zero_s = record.arrival_at_s
        self._epoch = epoch

    def span(
        self, kind: SpanKind, lane: Lane, timing: SegmentTiming | None, from_s: float, to_s: float
    ) -> Span:
        start_s = max(0.0, from_s - self._zero_s)
        return Span(
            kind=kind,
            lane=lane,
            instance_id=timing.instance_id if timing is not None else None,
            epoch=self._epoch,
            start_s=start_s,
            end_s=max(start_s, to_s - self._zero_s),
        )

    def at(self, since_arrival_s: float) -> float:
        return self._zero_s + since_arrival_s


def _placing(record: RequestRecord) -> Iterator[Span]:
    again_s = sum(recovery.replaced_s or 0.0 for recovery in record.recoveries)
    first_s = max(0.0, record.place_s - again_s)
    yield Span(kind="place", lane="gateway", start_s=0.0, end_s=first_s)
    for recovery in record.recoveries:
        start_s = max(0.0, recovery.at_s - record.arrival_at_s)
        yield Span(
            kind="place",
            lane="gateway",
            epoch=recovery.epoch + 1,
            start_s=start_s,
            end_s=start_s + (recovery.replaced_s or 0.0),
        )


def _delivery(
    axis: _Axis, placing: Iterable[Span], timings: Mapping[Lane, SegmentTiming]
) -> Iterator[Span]:
    """From the last placement until the segment that runs first is at its instance."""
    first = timings.get("alpha") or timings.get("whole")
    placed_s = max(span.end_s for span in placing if span.kind == "place")
    if first is not None:
        yield axis.span("bus", "gateway", first, axis.at(placed_s), first.received_s)


def _segment(
    axis: _Axis, timing: SegmentTiming, alpha: SegmentTiming | None, record: RequestRecord
) -> Iterator[Span]:
    lane, ready_s = timing.role, timing.received_s
    if timing.role == "beta" and alpha is not None:
        yield axis.span("bus", lane, timing, alpha.ended_s, timing.received_s)
        ready_s = max(ready_s, alpha.ended_s)
        yield axis.span("held", lane, timing, timing.received_s, ready_s)
        exposed_until_s = min(ready_s + timing.kv_wait_s, timing.ended_s)
        yield axis.span("transfer_exposed", "transfer", timing, ready_s, exposed_until_s)
        ready_s = exposed_until_s
    started_s = max(timing.ended_s if timing.started_s is None else timing.started_s, ready_s)
    yield axis.span("queue", lane, timing, ready_s, started_s)
    first_s = timing.ended_s if record.ttft_s is None else axis.at(record.ttft_s)
    turn_s = min(max(first_s, started_s), max(timing.ended_s, started_s))
    yield axis.span("prefill", lane, timing, started_s, turn_s)
    yield axis.span("decode", lane, timing, turn_s, timing.ended_s)


def _transfer(
    axis: _Axis, timings: dict[Lane, SegmentTiming], handoff: HandoffRecord | None
) -> Iterator[Span]:
    """The part of the transfer that alpha's computing hides."""
    alpha = timings.get("alpha")
    if alpha is None or handoff is None or handoff.num_bytes == 0:
        return
    started_s = handoff.streaming_at_s or alpha.ended_s - handoff.transfer_s
    yield axis.span("transfer_hidden", "transfer", timings.get("beta"), started_s, alpha.ended_s)
