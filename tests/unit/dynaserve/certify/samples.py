"""Outcomes, subjects, cases and records that the tests of certification share."""

from dynaserve.certify.grid import Case, Subject, make_case
from dynaserve.certify.outcome import Outcome
from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffRecord
from shared.schemas.place import Plan
from shared.schemas.request import Slo

TEXTS = (" the", " red", " boat", " is", " at", " sea", " and", " far", " off", ".")
PROBE = Outcome(
    token_ids=tuple(range(100, 110)),
    token_texts=TEXTS,
    text="".join(TEXTS),
    finish_reason="length",
    logprobs=tuple(-0.1 * i for i in range(10)),
    top_logprobs=tuple({text: -0.1} for text in TEXTS),
)


def subject(num_prompt: int = 40, max_tokens: int = 10, group: str = "greedy") -> Subject:
    return Subject(f"p0.{group}", group, tuple(range(num_prompt)), max_tokens, {"temperature": 0})


def case(number: int = 0, cut: int = 40, hands_over: bool = True) -> Case:
    return make_case(number, subject(), cut, hands_over)


def plan(cut: int | None = 40) -> Plan:
    return Plan(
        request_id="r",
        epoch=1,
        scheduler_id="s",
        policy="colocated",
        alpha_id="a",
        beta_id=None if cut is None else "b",
        cut=cut,
        handoff_id=None if cut is None else "r.1",
        reason="forced",
    )


def request_record(cut: int | None = 40, epochs: int = 1) -> RequestRecord:
    return RequestRecord(
        request_id="r",
        gateway_id="g",
        http_request_id="h",
        arrival_at_s=1.0,
        num_prompt_tokens=40,
        num_output_tokens=10,
        num_cached_tokens=0,
        slo=Slo(ttft_s=1.0, tbt_s=0.1),
        outcome="length",
        e2e_s=0.5,
        slo_met=True,
        epochs=epochs,
        plan=plan(cut),
    )


def handoff_record(outcome: str = "adopted", num_bytes: int = 4096) -> HandoffRecord:
    return HandoffRecord.model_validate(
        {
            "handoff_id": "r.1",
            "request_id": "r",
            "epoch": 1,
            "alpha_id": "a",
            "beta_id": "b",
            "outcome": outcome,
            "transport": "shm",
            "num_bytes": num_bytes,
            "transfer_s": 0.0,
            "exposed_s": 0.0,
            "total_s": 0.1,
        }
    )
