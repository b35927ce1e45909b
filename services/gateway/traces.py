"""The gateway's part of a request's trace: the whole, what came before it, placing, delivery."""

from collections.abc import Mapping
from dataclasses import replace

from services.gateway.in_flight import Ask, Delivered, InFlight
from shared.clock import Clock
from shared.schemas.events import RequestRecord
from shared.schemas.tokens import TokenFrame
from shared.tracing import RequestSpan, is_on, record_span


class RequestTraces:
    """Spans of the requests under way; empty while tracing is off."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spans: dict[str, RequestSpan] = {}

    def begin(self, ask: Ask) -> Ask:
        """Start a request's span; from now on the request carries it to everybody."""
        if not is_on():
            return ask
        now_s = self._clock.unix_s()
        start_s = now_s if ask.received_s is None else min(ask.received_s, now_s)
        request = ask.request
        attributes: dict[str, str | int | float | bool] = {
            "dynaserve.request_id": request.request_id,
            "dynaserve.http_request_id": ask.http_request_id,
            "dynaserve.slo_class": request.slo.name,
            "dynaserve.slo_ttft_s": request.slo.ttft_s,
            "dynaserve.slo_tbt_s": request.slo.tbt_s,
            "gen_ai.operation.name": ask.operation,
        }
        span = RequestSpan.begin("request", start_s, request.trace_headers, attributes)
        if span is None:
            return ask
        self._spans[request.request_id] = span
        traced = request.model_copy(update={"trace_headers": span.headers})
        record_span(span.headers, "receive", start_s, self._clock.unix_s())
        return replace(ask, request=traced)

    def placed(self, entry: InFlight) -> None:
        """A plan came, just now; a short request may be over before."""
        if is_on():
            now_s = self._clock.unix_s()
            start_s = now_s - (self._clock.monotonic_s() - entry.placing_since_s)
            attributes = {"dynaserve.epoch": entry.epoch}
            record_span(entry.ask.request.trace_headers, "place", start_s, now_s, attributes)

    def delivered(
        self, outputs: list[Delivered], in_flight: Mapping[str, InFlight], frame: TokenFrame
    ) -> None:
        """Some tokens arrived; the way of a request's first one is a part of its trace."""
        if not is_on() or frame.sent_s is None:
            return
        for output in outputs:
            if output.first is not None:
                headers = in_flight[output.delta.request_id].ask.request.trace_headers
                record_span(headers, "deliver", frame.sent_s, self._clock.unix_s())

    def over(self, record: RequestRecord, over_s: float) -> None:
        """A request's record is published; it was over at ``over_s``, monotonic seconds."""
        span = self._spans.pop(record.request_id, None)
        if span is None:
            return
        ended_s = self._clock.unix_s() - (self._clock.monotonic_s() - over_s)
        span.end(ended_s, _attributes(record), record.error)


def _attributes(record: RequestRecord) -> dict[str, str | int | float | bool]:
    told: dict[str, str | int | float | bool | None] = {
        "dynaserve.outcome": record.outcome,
        "dynaserve.slo_met": record.slo_met,
        "dynaserve.ttft_s": record.ttft_s,
        "dynaserve.tbt_p99_s": record.tbt_p99_s,
        "dynaserve.placements": record.epochs,
        "dynaserve.cut": record.plan.cut if record.plan is not None else None,
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.output_tokens": record.num_output_tokens,
    }
    return {name: value for name, value in told.items() if value is not None}
