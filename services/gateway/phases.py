"""Where the time to first token went, from a request's record. Pure."""

from shared.schemas.events import RequestRecord
from shared.schemas.tokens import SegmentTiming


def ttft_phases(record: RequestRecord) -> dict[str, float]:
    """Seconds by phase: place, queue, first (alpha or the whole), handoff, second (beta), other.

    They add up to the TTFT. Handoff and second are there when beta made the first token: from the
    end of alpha to beta's start, and beta's own part of the prompt.
    """
    if record.ttft_s is None:
        return {}
    phases = {"place": min(record.place_s, record.ttft_s)}
    left_s = record.ttft_s - phases["place"]
    for phase, spent_s in _computing(record):
        phases[phase] = max(0.0, min(spent_s, left_s))
        left_s -= phases[phase]
    phases["other"] = left_s
    return phases


def _computing(record: RequestRecord) -> list[tuple[str, float]]:
    """Phases on the instances; empty while their timings have not come."""
    assert record.ttft_s is not None
    now = {timing.role: timing for timing in record.segments if timing.epoch == record.epochs}
    first, second = now.get("whole") or now.get("alpha"), now.get("beta")
    if first is None or first.started_s is None:
        return []
    first_token_s = record.arrival_at_s + record.ttft_s
    phases = [("queue", first.started_s - first.received_s)]
    if second is None or second.started_s is None or not _is_cut_in_prompt(record):
        end_s = min(first.ended_s, first_token_s)
        return [*phases, ("first", end_s - first.started_s)]
    return [
        *phases,
        ("first", first.ended_s - first.started_s),
        ("handoff", second.started_s - first.ended_s),
        ("second", _own_s(second, first_token_s)),
    ]


def _own_s(second: SegmentTiming, first_token_s: float) -> float:
    assert second.started_s is not None
    return first_token_s - second.started_s


def _is_cut_in_prompt(record: RequestRecord) -> bool:
    cut = record.plan.cut if record.plan is not None else None
    return cut is not None and cut < record.num_prompt_tokens
