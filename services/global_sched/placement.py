"""From a question to a plan: views for the policy, the forced cut, what makes a cut impossible.

Pure: the actor gives the snapshot and publishes what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

from services.global_sched.length_predictor import LengthPredictor
from services.global_sched.policy.views import (
    Decision,
    InstanceView,
    PoolView,
    Prediction,
    RequestView,
    SplitPolicy,
    Weighed,
    prediction_of,
)
from shared.errors import HandoffError, InvalidRequest, NoInstance
from shared.pairing import choose_transport, differences
from shared.schemas import place as place_schema
from shared.schemas.handoff import HandoffOpen
from shared.schemas.message import num_tokens, unchecked
from shared.schemas.place import Place, Plan
from shared.schemas.registry import InstanceRecord
from shared.schemas.segment import HandoffRef, Segment

FORCED_CUT_PARAM = "vllm_xargs.dynaserve_cut"
FORCED_TRANSPORT_PARAM = "vllm_xargs.dynaserve_transport"


@dataclass(frozen=True, slots=True)
class Placement:
    """A decision as the messages that carry it out. ``segments``: (instance, segment) pairs."""

    plan: Plan
    segments: list[tuple[str, Segment]]
    opening: HandoffOpen | None
    request: RequestView


def traffic_class(place: Place) -> str:
    """Requests with the same objectives are expected to be alike."""
    return place.request.slo.name


def request_view(
    place: Place,
    lengths: LengthPredictor,
    *,
    name: str | None = None,
    model: str = "",
    cached_tokens: Mapping[str, int] | None = None,
) -> RequestView:
    """What a policy may know of a request. Tokens the client has count as prompt.

    ``name``: the traffic class, if not its own; ``model``: for its length.
    """
    request = place.request
    done = num_tokens(request.output_token_ids)
    left = max(request.max_tokens - done, 1)
    name = name or traffic_class(place)
    return RequestView(
        request_id=request.request_id,
        arrival_s=request.arrival_time_s,
        num_prompt_tokens=num_tokens(request.prompt_token_ids) + done,
        max_tokens=left,
        length=lengths.predict(name, left, model),
        slo_ttft_s=request.slo.ttft_s,
        slo_tbt_s=request.slo.tbt_s,
        traffic_class=name,
        cached_tokens=cached_tokens or {},
    )


def is_held_to_its_slo(place: Place) -> bool:
    """Whether it may be refused for its objective: not what was admitted before and is placed
    anew, and not a forced cut, for which nothing is predicted."""
    return place.epoch == 1 and not place.request.output_token_ids and place.forced_cut is None


def may_be_cut(place: Place) -> bool:
    """Only fresh generation requests are cut; resumed ones run on whole."""
    request = place.request
    return request.splittable and not request.output_token_ids and request.pooling_params is None


def decide(
    place: Place,
    request: RequestView,
    policy: SplitPolicy,
    pool: PoolView,
    records: dict[str, InstanceRecord],
    has_coordinator: bool,
) -> Decision:
    """The policy's decision, made possible: what cannot be cut runs whole on alpha.

    A forced cut takes the same way for every policy: the policy's first choice becomes alpha. A
    resumed request has had its cut and runs on whole. Raises InvalidRequest (forced cut alone) and
    NoInstance.
    """
    if not pool.instances:
        raise NoInstance("no instance is ready")
    decision = policy.place(request, pool)
    if place.forced_cut is not None and not place.request.output_token_ids:
        return force_cut(place, request, decision, pool, records, has_coordinator)
    if decision.cut is None:
        return decision
    obstacle = _obstacle(place, request, decision, records, has_coordinator)
    return decision if obstacle is None else uncut(decision, obstacle)


def uncut(decision: Decision, why: str) -> Decision:
    """The same choice without the cut: whole on alpha."""
    return replace(
        decision,
        kind="unsplit",
        beta_id=None,
        cut=None,
        chosen=decision.unsplit or decision.chosen,
        reason=f"{decision.reason}; not cut: {why}",
    )


def _obstacle(
    place: Place,
    request: RequestView,
    decision: Decision,
    records: dict[str, InstanceRecord],
    has_coordinator: bool,
) -> str | None:
    cut, beta_id = decision.cut, decision.beta_id
    if not may_be_cut(place):
        return "the request must run on one instance"
    if cut is None or beta_id is None or beta_id == decision.alpha_id:
        return "no second instance"
    if not 1 <= cut <= request.max_cut:
        return f"{cut} is outside 1..{request.max_cut}"
    if not has_coordinator:
        return "no KV-transfer coordinator is registered"
    alpha, beta = records[decision.alpha_id], records[beta_id]
    names = differences(alpha.geometry, beta.geometry)
    if names:
        return f"{alpha.instance_id} and {beta.instance_id} differ in {', '.join(names)}"
    try:
        choose_transport(alpha, beta, place.forced_transport)
    except HandoffError as error:
        return str(error)
    return None


def force_cut(
    place: Place,
    request: RequestView,
    decision: Decision,
    pool: PoolView,
    records: dict[str, InstanceRecord],
    has_coordinator: bool,
) -> Decision:
    """A cut at ``place.forced_cut`` between two instances that can hand over, or InvalidRequest.

    What the policy weighed and would have done goes along, to be told.
    """
    cut = place.forced_cut
    if cut is None or not 1 <= cut <= request.max_cut:
        raise _invalid(
            f"dynaserve_cut must be between 1 and {request.max_cut} "
            f"(prompt {request.num_prompt_tokens} + max_tokens {request.max_tokens} - 2), not {cut}"
        )
    if not may_be_cut(place):
        raise _invalid("this request cannot be cut: it must run on one instance")
    if not has_coordinator:
        raise _invalid("no KV-transfer service is in the pool, so nothing can be cut")
    alpha_id, beta_id = _pair(decision, pool, records)
    try:
        choose_transport(records[alpha_id], records[beta_id], place.forced_transport)
    except HandoffError as error:
        raise InvalidRequest(str(error), FORCED_TRANSPORT_PARAM) from error
    own = (decision.alpha_id, decision.beta_id, decision.cut, *decision.chosen)
    return replace(
        decision,
        kind="cut",
        alpha_id=alpha_id,
        beta_id=beta_id,
        cut=cut,
        reason=f"forced by the request; else: {decision.reason}",
        control_group=False,
        unforced=own,
    )


def _pair(
    decision: Decision, pool: PoolView, records: dict[str, InstanceRecord]
) -> tuple[str, str]:
    """The policy's first choice and the least loaded instance it can hand over to."""
    views = sorted(pool.instances, key=lambda view: view.instance_id != decision.alpha_id)
    for alpha in views:
        peers = [
            view
            for view in pool.instances
            if view.instance_id != alpha.instance_id
            and records[view.instance_id].geometry == records[alpha.instance_id].geometry
        ]
        if peers:
            return alpha.instance_id, min(peers, key=_busy).instance_id
    raise _invalid("a cut needs two ready instances with equal KV geometry")


def _busy(view: InstanceView) -> tuple[int, str]:
    alive = view.num_decodes + view.pending_decodes
    return view.outstanding_prefill_tokens + 100 * alive, view.instance_id


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, FORCED_CUT_PARAM)


def choose_coordinator(handoff_id: str, coordinators: Iterable[str]) -> str | None:
    """Rendezvous hashing: every scheduler picks the same, and few handoffs move when one goes."""
    return max(coordinators, key=lambda one: _weight(handoff_id, one), default=None)


def _weight(handoff_id: str, coordinator_id: str) -> bytes:
    return blake2b(f"{handoff_id}/{coordinator_id}".encode(), digest_size=8).digest()


def carry_out(
    place: Place,
    request: RequestView,
    decision: Decision,
    *,
    scheduler_id: str,
    policy: str,
    records: Mapping[str, InstanceRecord],
    coordinators: Iterable[str],
    now_s: float,
    handoff_timeout_s: float,
    max_candidates: int,
    decision_s: float = 0.0,
) -> Placement:
    """The messages of a decision."""
    handoff_id = f"{place.request.request_id}.{place.epoch}"
    coordinator_id = None
    if decision.cut is not None:
        coordinator_id = choose_coordinator(handoff_id, coordinators)
    plan = unchecked(
        Plan,
        request_id=place.request.request_id,
        epoch=place.epoch,
        scheduler_id=scheduler_id,
        policy=policy,
        alpha_id=decision.alpha_id,
        beta_id=decision.beta_id,
        cut=decision.cut,
        coordinator_id=coordinator_id,
        handoff_id=handoff_id if coordinator_id is not None else None,
        reason=decision.reason,
        control_group=decision.control_group,
        traffic_class=request.traffic_class,
        predicted_output_tokens=request.length.mean,
        predicted_cached_tokens=request.cached_tokens.get(decision.alpha_id, 0),
        unsplit=_told(decision.unsplit),
        disaggregated=_told(decision.disaggregated),
        chosen=_told(_predicted(decision)),
        unforced=_told_candidate(decision.unforced) if decision.unforced else None,
        candidates=[_told_candidate(e) for e in decision.alternatives.cheapest(max_candidates)],
        decision_s=decision_s,
    )
    if decision.cut is None or decision.beta_id is None or coordinator_id is None:
        whole = Segment(
            role="whole",
            epoch=place.epoch,
            gateway_id=place.gateway_id,
            request=place.request,
            sent_s=now_s + decision_s,
        )
        return Placement(plan, [(decision.alpha_id, whole)], None, request)
    deadline_s = _handoff_deadline_s(place, request, decision.cut, now_s, handoff_timeout_s)
    opening = HandoffOpen(
        handoff_id=handoff_id,
        request_id=place.request.request_id,
        epoch=place.epoch,
        alpha_id=decision.alpha_id,
        beta_id=decision.beta_id,
        cut=decision.cut,
        deadline_s=deadline_s,
        transport=choose_transport(
            records[decision.alpha_id], records[decision.beta_id], place.forced_transport
        ),
        traceparent=(place.request.trace_headers or {}).get("traceparent"),
    )
    segments = _segments(place, opening, coordinator_id, records, now_s + decision_s)
    return Placement(plan, segments, opening, request)


def _segments(
    place: Place,
    opening: HandoffOpen,
    coordinator_id: str,
    records: Mapping[str, InstanceRecord],
    sent_s: float,
) -> list[tuple[str, Segment]]:
    sides = (
        ("alpha", opening.alpha_id, opening.beta_id),
        ("beta", opening.beta_id, opening.alpha_id),
    )
    return [
        (
            instance_id,
            Segment(
                role="alpha" if role == "alpha" else "beta",
                epoch=place.epoch,
                gateway_id=place.gateway_id,
                request=place.request,
                sent_s=sent_s,
                handoff=HandoffRef(
                    handoff_id=opening.handoff_id,
                    cut=opening.cut,
                    peer_id=peer_id,
                    coordinator_id=coordinator_id,
                    deadline_s=opening.deadline_s,
                    peer_addresses=records[peer_id].kv_addresses,
                    transport=opening.transport,
                ),
            ),
        )
        for role, instance_id, peer_id in sides
    ]


def _handoff_deadline_s(
    place: Place, request: RequestView, cut: int, now_s: float, timeout_s: float
) -> float:
    decoded = max(0, cut - request.num_prompt_tokens)
    allowed_s = timeout_s + 2.0 * decoded * request.slo_tbt_s
    return min(place.request.deadline_s, now_s + allowed_s)


def _told(prediction: Prediction | None) -> place_schema.Prediction | None:
    if prediction is None:
        return None
    ttft_s, tbt_s, cost = prediction
    return unchecked(place_schema.Prediction, ttft_s=ttft_s, tbt_s=tbt_s, cost=cost)


def _told_candidate(each: Weighed) -> place_schema.Candidate:
    alpha_id, beta_id, cut, ttft_s, tbt_s, cost = each
    prediction = unchecked(place_schema.Prediction, ttft_s=ttft_s, tbt_s=tbt_s, cost=cost)
    return unchecked(
        place_schema.Candidate, alpha_id=alpha_id, beta_id=beta_id, cut=cut, prediction=prediction
    )


def _predicted(decision: Decision) -> Prediction | None:
    """Of what is done; of a forced cut only if the policy happened to weigh it."""
    if decision.unforced is None:
        return decision.chosen
    done = (decision.alpha_id, decision.beta_id, decision.cut)
    return next((prediction_of(each) for each in decision.weighed if each[:3] == done), None)
