"""Why a request missed an objective: what cost the most, in a sentence. Pure."""

from collections.abc import Iterable, Iterator, Sequence

from shared.explanation.model import Cause, Span
from shared.explanation.wording import say_s
from shared.schemas.events import Emitter, Recovery, RequestRecord, StepsSeen

LONG_STEP_SHARE = 0.9
"""A sampled step this close to the objective counts as the reason for a late token."""


def causes_of(record: RequestRecord, spans: Sequence[Span]) -> list[Cause]:
    """All causes of what was missed, the weightiest first; empty when both objectives held."""
    if record.slo_met:
        return []
    found = list(_of_outcome(record))
    if record.ttft_s is not None and record.ttft_s > record.slo.ttft_s:
        found += _weightiest(_of_ttft(record, spans, record.ttft_s))
    if record.tbt_p99_s is not None and record.tbt_p99_s > record.slo.tbt_s:
        found += _weightiest(_of_tbt(record))
    return found


def verdict_of(record: RequestRecord, causes: Sequence[Cause]) -> str:
    """One sentence: what was missed and why, or that nothing was."""
    if record.outcome in ("refused", "error", "abort"):
        return f"{causes[0].sentence[:1].upper()}{causes[0].sentence[1:]}." if causes else "Ended."
    said = [_said(record, causes, "ttft"), _said(record, causes, "tbt")]
    missed = "; ".join(part for part in said if part is not None)
    if missed:
        return f"Missed {missed}."
    if record.ttft_s is None:
        return "Ended without a token."
    met = f"TTFT {say_s(record.ttft_s)} of {say_s(record.slo.ttft_s)}"
    if record.tbt_p99_s is not None:
        met += f", P99 gap {say_s(record.tbt_p99_s)} of {say_s(record.slo.tbt_s)}"
    return f"Met both objectives: {met}."


def _said(record: RequestRecord, causes: Sequence[Cause], objective: str) -> str | None:
    cause = next((c for c in causes if c.objective == objective), None)
    if cause is None:
        return None
    if objective == "ttft":
        real_s, slo_s, name = record.ttft_s or 0.0, record.slo.ttft_s, "TTFT"
    else:
        real_s, slo_s, name = record.tbt_p99_s or 0.0, record.slo.tbt_s, "P99 gap"
    return f"{name} ({say_s(real_s)} against {say_s(slo_s)}): {cause.sentence}"


def _weightiest(causes: Iterable[Cause]) -> list[Cause]:
    return sorted(causes, key=lambda cause: -cause.seconds)


def _of_outcome(record: RequestRecord) -> Iterator[Cause]:
    why = f": {record.error}" if record.error else ""
    match record.outcome:
        case "refused":
            yield _outcome(record, "refused", f"refused after {say_s(record.e2e_s)}{why}")
        case "error":
            yield _outcome(record, "failed", f"failed after {say_s(record.e2e_s)}{why}")
        case "abort":
            after = f"{say_s(record.e2e_s)} with {record.num_output_tokens} tokens"
            yield _outcome(record, "client", f"the client left after {after}")


def _outcome(record: RequestRecord, kind: str, sentence: str) -> Cause:
    return Cause.model_validate(
        {"kind": kind, "objective": "outcome", "seconds": record.e2e_s, "sentence": sentence}
    )


# -- time to first token --------------------------------------------------------------------------


def _of_ttft(record: RequestRecord, spans: Sequence[Span], ttft_s: float) -> Iterator[Cause]:
    """What of TTFT passed in which span; work of a failed placement counts for its loss."""
    lost_s = 0.0
    before = [r for r in record.recoveries if r.at_s - record.arrival_at_s < ttft_s]
    if before:
        lost_s = before[-1].at_s - record.arrival_at_s
        yield _ttft("recovery", lost_s, _recovered(before[-1]), before[-1].instance_id)
    for span in spans:
        seconds = min(span.end_s, ttft_s) - max(span.start_s, lost_s)
        if seconds > 0 and not span.is_hidden and span.kind != "lost":
            cause = _of_span(record, span, seconds)
            if cause is not None:
                yield cause


def _of_span(record: RequestRecord, span: Span, seconds: float) -> Cause | None:
    where, said = span.instance_id or "an instance", say_s(seconds)
    match span.kind:
        case "place":
            return _ttft("place", seconds, f"no placement for {said}")
        case "bus":
            return _ttft("bus", seconds, f"took {said} on the bus to {where}", where)
        case "queue":
            return _ttft("queue", seconds, f"waited {said} in the queue of {where}", where)
        case "transfer_exposed":
            return _ttft("transfer", seconds, f"transfer exposed {said} before {where}", where)
        case "prefill":
            tokens = _prompt_tokens(record, span)
            sentence = f"{where} took {said} to compute {tokens} tokens of the prompt"
            return _ttft("prefill", seconds, sentence + _steps_said(record.steps, where), where)
    return None


def _prompt_tokens(record: RequestRecord, span: Span) -> int:
    cut = record.plan.cut if record.plan is not None else None
    total = record.num_prompt_tokens
    if cut is None or cut >= total:
        return max(0, total - record.num_cached_tokens)
    return cut if span.lane == "alpha" else total - cut


def _steps_said(steps: Sequence[StepsSeen], instance_id: str) -> str:
    seen = _steps_of(steps, instance_id, "prefill")
    if seen is None or not seen.most_decodes:
        return ""
    return f" beside up to {seen.most_decodes} decodes"


def _steps_of(steps: Sequence[StepsSeen], instance_id: str, phase: str) -> StepsSeen | None:
    return next((s for s in steps if (s.instance_id, s.phase) == (instance_id, phase)), None)


def _ttft(kind: str, seconds: float, sentence: str, instance_id: str | None = None) -> Cause:
    return _cause("ttft", kind, seconds, sentence, instance_id)


# -- gaps between tokens --------------------------------------------------------------------------


def _of_tbt(record: RequestRecord) -> Iterator[Cause]:
    """Late gaps by where they come from, weighed by how much they were late together."""
    slo_s = record.slo.tbt_s
    recovered = {recovery.position: recovery for recovery in record.recoveries}
    for emitter in record.emitters:
        if emitter.late_s > 0:
            yield _of_emitter(record, emitter)
        gap_s = emitter.handover_gap_s
        if gap_s is None or gap_s <= slo_s:
            continue
        recovery = recovered.get(emitter.from_position)
        if recovery is not None:
            sentence = f"{_recovered(recovery)}, a gap of {say_s(gap_s)}"
            yield _tbt("recovery", gap_s - slo_s, sentence, recovery.instance_id)
        else:
            yield _of_handover(record, emitter, gap_s)


def _of_emitter(record: RequestRecord, emitter: Emitter) -> Cause:
    where, slo_s = emitter.instance_id, record.slo.tbt_s
    steps = _steps_of(record.steps, where, "decode")
    late = f"{emitter.num_late_gaps} of {emitter.num_tokens} tokens late"
    if steps is not None and steps.longest_step_s >= LONG_STEP_SHARE * slo_s:
        sentence = (
            f"{where} ran steps of {_steps_took(steps, slo_s)} against an SLO of {say_s(slo_s)} "
            f"while it decoded ({late})"
        )
        return _tbt("steps", emitter.late_s, sentence, where)
    sentence = f"tokens of {where} came up to {say_s(emitter.longest_gap_s)} apart ({late})"
    if steps is not None:
        sentence += f" though its steps took {say_s(steps.median_step_s)}: preempted or held up"
    return _tbt("stall", emitter.late_s, sentence, where)


def _steps_took(steps: StepsSeen, slo_s: float) -> str:
    """The usual step when that is the trouble, and the longest when it is far from usual."""
    usual_s, longest_s = steps.median_step_s, steps.longest_step_s
    if usual_s < LONG_STEP_SHARE * slo_s:
        return f"up to {say_s(longest_s)}"
    if longest_s < 2 * usual_s:
        return say_s(usual_s)
    return f"{say_s(usual_s)}, up to {say_s(longest_s)},"


def _of_handover(record: RequestRecord, emitter: Emitter, gap_s: float) -> Cause:
    where, over_s = emitter.instance_id, gap_s - record.slo.tbt_s
    beta = next((t for t in reversed(record.segments) if t.instance_id == where), None)
    exposed_s = beta.kv_wait_s if beta is not None else 0.0
    if exposed_s >= gap_s / 2:
        sentence = f"transfer exposed {say_s(exposed_s)} at the cut, before {where} went on"
        return _tbt("transfer", over_s, sentence, where)
    sentence = f"{where} took {say_s(gap_s)} to go on behind the cut"
    if exposed_s > 0:
        sentence += f", {say_s(exposed_s)} of it transfer"
    return _tbt("queue", over_s, sentence, where)


def _recovered(recovery: Recovery) -> str:
    where = recovery.instance_id or "an instance"
    match recovery.code:
        case "instance_lost":
            return f"recovered after {where} was lost"
        case "handoff_lost":
            return f"recovered after the handoff to {where} was lost"
        case code:
            return f"recovered after {where} failed ({code.replace('_', ' ')})"


def _tbt(kind: str, seconds: float, sentence: str, instance_id: str | None = None) -> Cause:
    return _cause("tbt", kind, seconds, sentence, instance_id)


def _cause(
    objective: str, kind: str, seconds: float, sentence: str, instance_id: str | None
) -> Cause:
    return Cause.model_validate(
        {
            "kind": kind,
            "objective": objective,
            "seconds": seconds,
            "sentence": sentence,
            "instance_id": instance_id,
        }
    )
