"""The explanation of one request from its record and those of its handoffs."""

from collections.abc import Sequence

from shared.explanation.cause import causes_of, verdict_of
from shared.explanation.choice import choice_of
from shared.explanation.model import Explanation
from shared.explanation.regret import regret_of
from shared.explanation.spans import accounted, spans_of
from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffRecord


def explain(record: RequestRecord, handoffs: Sequence[HandoffRecord] = ()) -> Explanation:
    """Handoffs of other requests are passed by."""
    own = [handoff for handoff in handoffs if handoff.request_id == record.request_id]
    spans = spans_of(record, own)
    causes = causes_of(record, spans)
    return Explanation(
        request_id=record.request_id,
        verdict=verdict_of(record, causes),
        causes=causes,
        spans=spans,
        accounted_ttft=accounted(spans, record.ttft_s) if record.ttft_s is not None else None,
        choice=choice_of(record),
        regret=regret_of(record),
    )
