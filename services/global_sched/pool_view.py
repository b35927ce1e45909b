"""The pool as a policy sees it: what instances report, plus what was placed since.

Pure: fed with records, loads and decisions; ``view`` gives the frozen snapshot. A placement counts
here from the decision until the instance's telemetry names it as admitted (it is in the reported
numbers then), or until ``UNSEEN_S`` when its segment was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from services.global_sched.policy.views import InstanceView, PoolView, RequestView, Role
from shared.latency_model import LatencyModel, LatencyProfile
from shared.schemas.registry import Geometry, InstanceRecord
from shared.schemas.telemetry import InstanceLoad

UNSEEN_S = 5.0


@dataclass(frozen=True, slots=True)
class Burden:
    """What a placed segment will cost its instance. Tokens."""

    prefill_tokens: int
    decodes: int
    context_tokens: int


@dataclass(slots=True)
class _Tracked:
    """One instance: its record, its last report, and what was placed on it since."""

    record: InstanceRecord
    model: LatencyModel
    load: InstanceLoad | None = None
    unseen: dict[str, tuple[float, Burden]] = field(default_factory=dict)
    view: InstanceView | None = None


class PoolTracker:
    """Invariant: ``view`` holds exactly the instances that are registered and ready."""

    def __init__(self) -> None:
        self._tracked: dict[str, _Tracked] = {}
        self._roles: Mapping[str, Role] = {}
        self._default_model = LatencyProfile.load().model

    def on_record(self, instance_id: str, record: InstanceRecord | None) -> None:
        """An instance came, changed or left."""
        if record is None:
            self._tracked.pop(instance_id, None)
        elif instance_id in self._tracked:
            tracked = self._tracked[instance_id]
            tracked.record, tracked.model, tracked.view = record, self._model_of(record), None
        else:
            self._tracked[instance_id] = _Tracked(record, self._model_of(record))

    def on_load(self, load: InstanceLoad) -> None:
        """An instance reported; reports that come out of order are passed by."""
        tracked = self._tracked.get(load.instance_id)
        if tracked is None or (tracked.load is not None and _is_older(load, tracked.load)):
            return
        tracked.load, tracked.view = load, None
        for request_id in load.admitted_request_ids:
            tracked.unseen.pop(request_id, None)
        self._forget_lost(tracked, load.at_s)

    def on_placed(self, instance_id: str, request_id: str, burden: Burden, now_s: float) -> None:
        """A segment was sent to an instance."""
        tracked = self._tracked.get(instance_id)
        if tracked is not None:
            tracked.unseen[request_id] = (now_s, burden)
            tracked.view = None

    def set_roles(self, roles: Mapping[str, Role]) -> None:
        """Roles that take the place of those instances registered with."""
        self._roles = roles
        for tracked in self._tracked.values():
            tracked.view = None

    def ready(self, avoid: Iterable[str] = ()) -> list[InstanceRecord]:
        """Who may get work; ``avoid`` is honoured as long as someone is left."""
        ready = [t.record for t in self._tracked.values() if t.record.state == "ready"]
        avoided = set(avoid)
        return [record for record in ready if record.instance_id not in avoided] or ready

    def view(self, now_s: float, among: list[InstanceRecord]) -> PoolView:
        """The snapshot a policy decides on."""
        views = tuple(self._view(self._tracked[record.instance_id]) for record in among)
        if not among:
            return PoolView(now_s, views)
        return PoolView(now_s, views, kv_bytes_per_token=kv_token_bytes(among[0].geometry))

    def _view(self, tracked: _Tracked) -> InstanceView:
        if tracked.view is None:
            tracked.view = self._make_view(tracked)
        return tracked.view

    def _make_view(self, tracked: _Tracked) -> InstanceView:
        record, load = tracked.record, tracked.load
        burdens = [burden for _, burden in tracked.unseen.values()]
        prefill = sum(burden.prefill_tokens for burden in burdens)
        context = sum(burden.context_tokens for burden in burdens)
        decodes = sum(burden.decodes for burden in burdens)
        role = self._roles.get(record.instance_id, record.role)
        block_size = record.geometry.block_size
        capacity = record.num_blocks * block_size
        view = InstanceView(
            record.instance_id,
            tracked.model,
            role=role,
            outstanding_prefill_tokens=prefill,
            pending_decodes=decodes,
            pending_decode_context_tokens=context,
            kv_free_tokens=capacity - context,
            kv_capacity_tokens=capacity,
            max_num_batched_tokens=record.max_num_batched_tokens,
        )
        if load is None:
            return view
        return view._replace(
            model=load.latency.model() if load.latency else tracked.model,
            num_decodes=load.num_decodes,
            decode_context_tokens=load.context_sum,
            outstanding_prefill_tokens=prefill + load.outstanding_prefill_tokens,
            # Who runs or waits and does not decode yet will, behind the prompt still to compute.
            pending_decodes=decodes + _not_yet_decoding(load),
            pending_decode_context_tokens=context + load.outstanding_prefill_tokens,
            kv_free_tokens=load.free_blocks * block_size - context,
            static_tokens=_static_tokens(load.batcher_mode),
            slo_headroom=load.slo_headroom,
            link_bytes_per_s=_link_speed(load, view.link_bytes_per_s),
        )

    def _model_of(self, record: InstanceRecord) -> LatencyModel:
        latency = record.latency
        if latency is None:
            return self._default_model
        return latency.model()

    def _forget_lost(self, tracked: _Tracked, now_s: float) -> None:
        lost = [key for key, (at_s, _) in tracked.unseen.items() if at_s < now_s - UNSEEN_S]
        for request_id in lost:
            del tracked.unseen[request_id]


def kv_token_bytes(geometry: Geometry) -> int:
    """KV of one token over all layers and ranks."""
    per_block = geometry.num_layers * geometry.block_bytes * geometry.tensor_parallel_size
    return max(1, per_block // geometry.block_size)


def burdens(
    request: RequestView, cut: int | None, cached_tokens: int = 0
) -> tuple[Burden, Burden | None]:
    """What alpha and beta (None when uncut) will have to carry."""
    prompt, expected = request.num_prompt_tokens, max(1, round(request.length.mean))
    if cut is None:
        return Burden(max(prompt - cached_tokens, 1), 1, prompt + expected // 2), None
    alpha = Burden(min(cut, prompt), int(cut > prompt), cut)
    beta = Burden(max(prompt - cut, 0), 1, prompt + expected // 2)
    return alpha, beta


def _is_older(load: InstanceLoad, known: InstanceLoad) -> bool:
    """By sequence; an instance that was restarted counts from one again, but later."""
    return load.sequence <= known.sequence and load.at_s <= known.at_s


def _not_yet_decoding(load: InstanceLoad) -> int:
    alive = load.num_running + load.num_waiting + load.num_waiting_for_kv
    return max(0, alive - load.num_decodes)


def _static_tokens(batcher_mode: str) -> int | None:
    kind, _, tokens = batcher_mode.partition(":")
    return int(tokens) if kind == "static" and tokens.isdigit() else None


def _link_speed(load: InstanceLoad, otherwise: float) -> float:
    speeds = [link.bytes_per_s for link in load.links if link.bytes_per_s > 0.0]
    return max(speeds, default=otherwise)
