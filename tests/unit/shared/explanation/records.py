"""Records of requests, made up by tests: one that ran well, to be changed."""

from typing import Any

from shared.schemas.events import Emitter, RequestRecord
from shared.schemas.handoff import HandoffRecord
from shared.schemas.place import Candidate, Plan, Prediction
from shared.schemas.request import Slo
from shared.schemas.tokens import SegmentTiming

AT_S = 1_000.0
P = 800


def prediction(ttft_s: float = 0.3, tbt_s: float = 0.04, cost: float = 1.0) -> Prediction:
    return Prediction(ttft_s=ttft_s, tbt_s=tbt_s, cost=cost)


def plan(**fields: Any) -> Plan:
    whole = {
        "request_id": "r",
        "epoch": 1,
        "scheduler_id": "s",
        "policy": "dynaserve",
        "alpha_id": "a",
        "reason": "least loaded",
        "chosen": prediction(),
        "candidates": [
            Candidate(alpha_id="a", prediction=prediction()),
            Candidate(alpha_id="b", prediction=prediction(0.4, 0.05, 2.0)),
        ],
    }
    return Plan.model_validate(whole | fields)


def cut_plan(cut: int) -> Plan:
    return plan(
        beta_id="b",
        cut=cut,
        handoff_id="r.1",
        candidates=[
            Candidate(alpha_id="a", beta_id="b", cut=cut, prediction=prediction()),
            Candidate(alpha_id="c", prediction=prediction(0.5, 0.03, 2.0)),
        ],
    )


def timing(
    instance_id: str,
    role: str,
    received_s: float,
    started_s: float | None,
    ended_s: float,
    kv_wait_s: float = 0.0,
    epoch: int = 1,
) -> SegmentTiming:
    """Times count from the request's arrival."""
    return SegmentTiming.model_validate(
        {
            "instance_id": instance_id,
            "request_id": "r",
            "epoch": epoch,
            "role": role,
            "received_s": AT_S + received_s,
            "started_s": None if started_s is None else AT_S + started_s,
            "ended_s": AT_S + ended_s,
            "kv_wait_s": kv_wait_s,
        }
    )


def record(**fields: Any) -> RequestRecord:
    """Uncut on a: placed at 10 ms, queued until 50 ms, first token at 300 ms, over at 1.3 s."""
    good = {
        "request_id": "r",
        "gateway_id": "g",
        "http_request_id": "h",
        "arrival_at_s": AT_S,
        "num_prompt_tokens": P,
        "num_output_tokens": 26,
        "num_cached_tokens": 0,
        "slo": Slo(ttft_s=1.0, tbt_s=0.1),
        "outcome": "length",
        "place_s": 0.01,
        "ttft_s": 0.3,
        "tbt_p99_s": 0.05,
        "tpot_s": 0.04,
        "e2e_s": 1.3,
        "slo_met": True,
        "epochs": 1,
        "plan": plan(),
        "segments": [timing("a", "whole", 0.01, 0.05, 1.3)],
        "emitters": [Emitter(instance_id="a", from_position=P, num_tokens=26)],
    }
    return RequestRecord.model_validate(good | fields)


def missed(**fields: Any) -> RequestRecord:
    return record(**({"slo_met": False} | fields))


def cut_record(cut: int = P - 1, kv_wait_s: float = 0.05, **fields: Any) -> RequestRecord:
    """Alpha from 20 ms to 200 ms, transfer exposed after that, then beta."""
    segments = [
        timing("a", "alpha", 0.01, 0.02, 0.2),
        timing("b", "beta", 0.01, 0.2 + kv_wait_s, 1.3, kv_wait_s),
    ]
    emitter = Emitter(instance_id="b", from_position=P, num_tokens=26)
    whole = {"plan": cut_plan(cut), "segments": segments, "emitters": [emitter]}
    return record(**(whole | fields))


def handoff(**fields: Any) -> HandoffRecord:
    adopted = {
        "handoff_id": "r.1",
        "request_id": "r",
        "epoch": 1,
        "alpha_id": "a",
        "beta_id": "b",
        "outcome": "adopted",
        "transport": "shm",
        "num_bytes": 10_000,
        "transfer_s": 0.08,
        "exposed_s": 0.05,
        "total_s": 0.3,
        "streaming_at_s": AT_S + 0.1,
    }
    return HandoffRecord.model_validate(adopted | fields)
