"""The pool as a policy sees it: what instances report, plus what was placed since.

Pure: fed with records, loads and decisions; ``view`` gives the frozen snapshot. A placement counts
here from the decision until the instance's telemetry names it as admitted (it is in the reported
numbers then), until the request is over, or until ``UNSEEN_S`` when its segment was lost. Times are
monotonic seconds of the scheduler's own clock: those of instances may be off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from services.global_sched.policy.views import (
    DEFAULT_LINK_BYTES_PER_S,
    InstanceView,
    PoolView,
    RequestView,
    Role,
)
from shared.latency_model import LatencyModel, LatencyProfile
from shared.schemas.registry import Geometry, InstanceRecord
from shared.schemas.telemetry import InstanceLoad

UNSEEN_S = 5.0
SILENT_S = 1.0
SILENT_REPORTS = 4
"""An instance that stayed away from so many reports, and for ``SILENT_S``, gets no work."""


@dataclass(frozen=True, slots=True)
class Burden:
    """What a placed segment will cost its instance. Tokens."""

    prefill_tokens: int
    decodes: int
    context_tokens: int
    inbound_tokens: int = 0
    """Prompt tokens to compute once their KV has come."""


@dataclass(slots=True)
class _Tracked:
    """One instance: its record, its last report, and what was placed on it since."""

    record: InstanceRecord
    model: LatencyModel
    load: InstanceLoad | None = None
    heard_s: float = 0.0
    unseen: dict[str, tuple[float, Burden]] = field(default_factory=dict)
    view: InstanceView | None = None
    queued: int = 0
    """Requests here without a first token; belongs to ``view``."""

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens it is believed to have before it."""
        unseen = sum(burden.prefill_tokens for _, burden in self.unseen.values())
        return unseen + (self.load.outstanding_prefill_tokens if self.load else 0)

    def is_silent(self, now_s: float) -> bool:
        every_s = self.load.report_every_s if self.load else 0.0
        return now_s - self.heard_s > max(SILENT_S, SILENT_REPORTS * every_s)


class PoolTracker:
    """Invariant: ``view`` holds exactly the instances that are registered and ready."""

    def __init__(self) -> None:
        self._tracked: dict[str, _Tracked] = {}
        self._seen: list[_Tracked] = []
        self.records: dict[str, InstanceRecord] = {}
        """Of every instance, ready or not."""
        self._roles: Mapping[str, Role] = {}
        self._default_model = LatencyProfile.load().model
        self.num_lost = 0
        """Placements that no report ever showed."""

    def on_record(
        self, instance_id: str, record: InstanceRecord | None, now_s: float = 0.0
    ) -> None:
        """An instance came, changed or left."""
        known = self._tracked.get(instance_id)
        if record is not None:
            self.records[instance_id] = record
        if record is None:
            self._tracked.pop(instance_id, None)
            self.records.pop(instance_id, None)
        elif known is None or known.record.started_s != record.started_s:
            self._tracked[instance_id] = _Tracked(record, self._model_of(record), heard_s=now_s)
        else:
            known.record, known.model, known.view = record, self._model_of(record), None

    def on_load(self, load: InstanceLoad, now_s: float = 0.0) -> int | None:
        """An instance reported; reports that come out of order count only as a sign of life.

        Returns by how many prompt tokens it was believed to have more before it than it says, if
        the report shows placements made here: what it computed meanwhile, and our error.
        """
        tracked = self._tracked.get(load.instance_id)
        if tracked is None:
            return None
        tracked.heard_s, tracked.view = now_s, None
        believed = tracked.prefill_tokens
        shown = [tracked.unseen.pop(name, None) for name in load.admitted_request_ids]
        self._forget_lost(tracked, now_s)
        if tracked.load is not None and _is_older(load, tracked.load):
            return None
        tracked.load = load
        return believed - tracked.prefill_tokens if any(shown) else None

    def on_placed(self, instance_id: str, request_id: str, burden: Burden, now_s: float) -> None:
        """A segment was sent to an instance."""
        tracked = self._tracked.get(instance_id)
        if tracked is not None:
            tracked.unseen[request_id] = (now_s, burden)
            tracked.view = None

    def on_over(self, instance_id: str, request_id: str) -> None:
        """A request that was placed there is over."""
        tracked = self._tracked.get(instance_id)
        if tracked is not None and tracked.unseen.pop(request_id, None) is not None:
            tracked.view = None

    def set_roles(self, roles: Mapping[str, Role]) -> None:
        """Roles that take the place of those instances registered with."""
        self._roles = roles
        for tracked in self._tracked.values():
            tracked.view = None

    def ready(self, avoid: Iterable[str] = (), now_s: float = 0.0) -> list[InstanceRecord]:
        """Who may get work. Silent instances get none, and ``avoid`` is honoured, as long as
        someone is left: when all are silent it is the bus or ourselves that is slow."""
        ready = [t for t in self._tracked.values() if t.record.state == "ready"]
        fresh_s = now_s - SILENT_S  # asking each one costs a twentieth of a decision
        heard = [t.record for t in ready if t.heard_s >= fresh_s or not t.is_silent(now_s)]
        heard = heard or [t.record for t in ready]
        avoided = set(avoid)
        if not avoided:
            return heard
        return [record for record in heard if record.instance_id not in avoided] or heard

    def view(
        self,
        now_s: float,
        among: list[InstanceRecord],
        unsplit_classes: frozenset[str] = frozenset(),
    ) -> PoolView:
        """The snapshot a policy decides on; ``now_s`` in unix seconds."""
        self._seen = [self._tracked[record.instance_id] for record in among]
        views = tuple([each.view or self._make_view(each) for each in self._seen])
        if not among:
            return PoolView(now_s, views)
        token_bytes = kv_token_bytes(among[0].geometry)
        return PoolView(now_s, views, token_bytes, unsplit_classes=unsplit_classes)

    @property
    def num_queued(self) -> int:
        """Requests without a first token on the instances of the last ``view``."""
        return sum([tracked.queued for tracked in self._seen])

    def last_load(self, instance_id: str) -> InstanceLoad | None:
        tracked = self._tracked.get(instance_id)
        return tracked.load if tracked is not None else None

    @property
    def num_unseen(self) -> int:
        """Placements that telemetry does not show yet."""
        return sum(len(tracked.unseen) for tracked in self._tracked.values())

    @property
    def unseen_tokens(self) -> int:
        """Prompt tokens of these placements."""
        burdens = [b for t in list(self._tracked.values()) for _, b in list(t.unseen.values())]
        return sum(burden.prefill_tokens for burden in burdens)

    def num_silent(self, now_s: float) -> int:
        return sum(tracked.is_silent(now_s) for tracked in list(self._tracked.values()))

    def _make_view(self, tracked: _Tracked) -> InstanceView:
        """What it reported, with what was placed on it since; kept until either changes."""
        record, load = tracked.record, tracked.load
        prefill = inbound = context = decodes = 0
        for _, burden in tracked.unseen.values():
            prefill += burden.prefill_tokens
            inbound += burden.inbound_tokens
            context += burden.context_tokens
            decodes += burden.decodes
        role = self._roles.get(record.instance_id, record.role)
        block_size = record.geometry.block_size
        capacity = record.num_blocks * block_size
        tracked.queued = decodes
        if load is None:
            view = InstanceView(
                record.instance_id,
                tracked.model,
                role=role,
                outstanding_prefill_tokens=prefill,
                inbound_prefill_tokens=inbound,
                pending_decodes=decodes,
                pending_decode_context_tokens=context,
                kv_free_tokens=capacity - context,
                kv_capacity_tokens=capacity,
                max_num_batched_tokens=record.max_num_batched_tokens,
            )
        else:
            tracked.queued += _without_first_token(load)
            late = load.late_prefill_tokens
            view = InstanceView(
                record.instance_id,
                load.latency.model() if load.latency else tracked.model,
                role,
                load.num_decodes,
                load.context_sum,
                prefill + load.outstanding_prefill_tokens - late,
                inbound + load.inbound_prefill_tokens,
                late,
                decodes + load.num_pending_decodes,
                context + load.pending_decode_context_tokens,
                load.free_blocks * block_size - context,
                capacity,
                record.max_num_batched_tokens,
                _static_tokens(load.batcher_mode),
                load.slo_headroom,
                _link_speed(load, DEFAULT_LINK_BYTES_PER_S),
                load.step_margin,
            )
        tracked.view = view
        return view

    def _model_of(self, record: InstanceRecord) -> LatencyModel:
        latency = record.latency
        if latency is None:
            return self._default_model
        return latency.model()

    def _forget_lost(self, tracked: _Tracked, now_s: float) -> None:
        lost = [key for key, (at_s, _) in tracked.unseen.items() if at_s < now_s - UNSEEN_S]
        for request_id in lost:
            del tracked.unseen[request_id]
        self.num_lost += len(lost)


def kv_token_bytes(geometry: Geometry) -> int:
    """KV of one token over all layers and ranks."""
    per_block = geometry.num_layers * geometry.block_bytes * geometry.tensor_parallel_size
    return max(1, per_block // geometry.block_size)


def burdens(
    request: RequestView, cut: int | None, cached_tokens: int = 0
) -> tuple[Burden, Burden | None]:
    """What alpha, which holds ``cached_tokens``, and beta (None: uncut) will have to carry."""
    prompt, expected = request.num_prompt_tokens, max(1, round(request.length.mean))
    if cut is None:
        return Burden(max(prompt - cached_tokens, 1), 1, prompt + expected // 2), None
    alpha = Burden(max(min(cut, prompt) - cached_tokens, 1), int(cut > prompt), cut)
    beta = Burden(0, 1, prompt + expected // 2, max(prompt - cut, 0))
    return alpha, beta


def _is_older(load: InstanceLoad, known: InstanceLoad) -> bool:
    """By sequence; an instance that was restarted counts from one again, but later."""
    return load.sequence <= known.sequence and load.at_s <= known.at_s


def _without_first_token(load: InstanceLoad) -> int:
    """Those that wait for KV are counted where their prompt is computed."""
    return max(0, load.num_running + load.num_waiting - load.num_decodes)


def _static_tokens(batcher_mode: str) -> int | None:
    if batcher_mode == "slo":
        return None
    kind, _, tokens = batcher_mode.partition(":")
    return int(tokens) if kind == "static" and tokens.isdigit() else None


def _link_speed(load: InstanceLoad, otherwise: float) -> float:
    """The best of its links: the view knows no pairs, and a peer is chosen that it reaches well."""
    if not load.links:
        return otherwise
    speeds = [link.bytes_per_s for link in load.links if link.bytes_per_s > 0.0]
    return max(speeds, default=otherwise)
