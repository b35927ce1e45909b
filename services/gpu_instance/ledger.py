"""What the instance knows of segments: who is alive, and which epochs are over.

Pure: no clock, no I/O. Epochs fence: of one request only the highest epoch seen may run, and what a
cancel has named may not start any more, in whatever order the messages arrive.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

from shared.schemas.segment import Segment

Key = tuple[str, int]
"""(request_id, epoch)."""

MAX_REMEMBERED = 16_384
"""Requests whose fence is remembered after they ended; the oldest are forgotten first."""


@dataclass(slots=True)
class LiveSegment:
    """A segment the engine has. Unix seconds."""

    segment: Segment
    received_s: float
    started_s: float | None = None
    token_ids: list[int] = field(default_factory=list)
    """Alpha only: what it emitted, for the continuation."""
    kv_wait_s: float = 0.0
    kv_bytes: int = 0
    settled_s: float | None = None
    """Beta only: since when it does not wait for KV any more."""

    @property
    def key(self) -> Key:
        return self.segment.request.request_id, self.segment.epoch


@dataclass(slots=True)
class _Fence:
    seen: int = 0
    cancelled: int = 0


Verdict = Literal["new", "duplicate", "stale"]


class SegmentLedger:
    """Invariant: at most one live segment per request, of the highest epoch seen."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self.alive: dict[Key, LiveSegment] = {}
        self._fences: OrderedDict[str, _Fence] = OrderedDict()
        self._max_remembered = max_remembered

    def judge(self, segment: Segment) -> Verdict:
        """May the segment start? 'duplicate' was seen already, 'stale' is fenced off."""
        fence = self._fences.get(segment.request.request_id)
        if fence is None or segment.epoch > max(fence.seen, fence.cancelled):
            return "new"
        return "duplicate" if segment.epoch == fence.seen else "stale"

    def admit(self, segment: Segment, now_s: float) -> LiveSegment:
        """Record a segment judged new as alive."""
        self._fence(segment.request.request_id).seen = segment.epoch
        live = LiveSegment(segment, now_s)
        self.alive[live.key] = live
        return live

    def refuse(self, segment: Segment) -> None:
        """Record that the segment was seen and will not run."""
        self._fence(segment.request.request_id).seen = segment.epoch

    def cancel(self, request_id: str, epoch: int) -> list[LiveSegment]:
        """Fence every epoch up to ``epoch``; returns the live segments that end with it."""
        fence = self._fence(request_id)
        fence.cancelled = max(fence.cancelled, epoch)
        ended = [self.alive.get((request_id, fence.seen))] if fence.seen <= epoch else []
        return [self.end(live.key) for live in ended if live is not None]

    def older_than(self, segment: Segment) -> LiveSegment | None:
        """The live segment of an earlier epoch that ``segment`` takes the place of."""
        fence = self._fences.get(segment.request.request_id)
        if fence is None or fence.seen >= segment.epoch:
            return None
        return self.alive.get((segment.request.request_id, fence.seen))

    def was_seen(self, request_id: str, epoch: int) -> bool:
        """True when a segment of this request, up to ``epoch``, ever came here."""
        fence = self._fences.get(request_id)
        return fence is not None and 0 < fence.seen <= epoch

    def end(self, key: Key) -> LiveSegment:
        """Remove a live segment; its fence stays."""
        return self.alive.pop(key)

    def overdue(self, now_s: float) -> list[LiveSegment]:
        """Live segments nobody waits for any more."""
        return [live for live in self.alive.values() if live.segment.request.deadline_s < now_s]

    def _fence(self, request_id: str) -> _Fence:
        fence = self._fences.get(request_id)
        if fence is None:
            fence = self._fences[request_id] = _Fence()
            self._forget()
        else:
            self._fences.move_to_end(request_id)
        return fence

    def _forget(self) -> None:
        """Drop the oldest fences beyond the bound, never one of a live segment."""
        for _ in range(len(self._fences) - self._max_remembered):
            request_id, fence = self._fences.popitem(last=False)
            if (request_id, fence.seen) in self.alive:
                self._fences[request_id] = fence
