"""The scheduler's view of the pool: what engines reported plus what was placed since.

Pure: reports and placements go in, `PoolView`s come out. A placement counts on top of the reports
until a report says that it includes it (``admitted``), or until it is ``forget_s`` old (a lost
message must not leave shadow load behind). Each report is compared with what was expected of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.global_sched.policy.views import Decision, InstanceView, PoolView, RequestView


@dataclass(frozen=True, slots=True)
class Placed:
    """The part of a placement that falls on one instance."""

    request_id: str
    at_s: float
    prefill_tokens: int
    decodes: int
    context_tokens: int


class PoolAccount:
    """Invariant: nothing an instance has reported, and nothing older than ``forget_s``, is added.

    ``error_tokens`` is the running mean of |expected - reported| outstanding prefill tokens.
    """

    def __init__(self, forget_s: float = 5.0) -> None:
        self._forget_s = forget_s
        self._reported: dict[str, InstanceView] = {}
        self._placed: dict[str, dict[str, Placed]] = {}
        self._views: dict[str, InstanceView] = {}
        self.error_tokens: dict[str, float] = {}

    def report(self, view: InstanceView, admitted: Iterable[str], now_s: float) -> None:
        """An engine's own figures, and the requests they include for the first time."""
        placed = self._placed.setdefault(view.instance_id, {})
        expected = self._views.get(view.instance_id)
        included = [part for id_ in admitted if (part := placed.pop(id_, None)) is not None]
        expired = [id_ for id_, part in placed.items() if now_s - part.at_s > self._forget_s]
        for request_id in expired:
            del placed[request_id]
        if expected is not None and (included or expired):
            self._score(view, expected)
        self._reported[view.instance_id] = view
        self._refresh(view.instance_id)

    def _score(self, view: InstanceView, expected: InstanceView) -> None:
        still_placed = sum(part.prefill_tokens for part in self._placed[view.instance_id].values())
        reported = view.outstanding_prefill_tokens + still_placed
        error = abs(expected.outstanding_prefill_tokens - reported)
        before = self.error_tokens.get(view.instance_id, float(error))
        self.error_tokens[view.instance_id] = before + 0.05 * (error - before)

    def place(self, request: RequestView, decision: Decision, now_s: float) -> None:
        """Count an own placement until the engines report it."""
        prompt = request.num_prompt_tokens
        cached = request.cached_tokens.get(decision.alpha_id, 0)
        own = prompt if decision.cut is None else min(decision.cut, prompt)
        whole = decision.beta_id is None
        self._add(decision.alpha_id, request, now_s, max(own - cached, 1), whole)
        if decision.beta_id is not None:
            self._add(decision.beta_id, request, now_s, prompt - own, True)

    def _add(
        self, instance_id: str, request: RequestView, now_s: float, tokens: int, decodes: bool
    ) -> None:
        context = request.num_prompt_tokens if decodes else 0
        part = Placed(request.request_id, now_s, tokens, int(decodes), context)
        self._placed.setdefault(instance_id, {})[request.request_id] = part
        self._refresh(instance_id)

    def withdraw(self, request_id: str) -> None:
        """The request was cancelled, refused or failed before it was reported."""
        for instance_id, placed in self._placed.items():
            if placed.pop(request_id, None) is not None:
                self._refresh(instance_id)

    def remove(self, instance_id: str) -> None:
        """The instance left the pool."""
        for known in (self._reported, self._placed, self._views, self.error_tokens):
            known.pop(instance_id, None)

    def _refresh(self, instance_id: str) -> None:
        view = self._reported.get(instance_id)
        if view is None:
            return
        placed = self._placed.get(instance_id, {}).values()
        self._views[instance_id] = view._replace(
            outstanding_prefill_tokens=view.outstanding_prefill_tokens
            + sum(part.prefill_tokens for part in placed),
            pending_decodes=view.pending_decodes + sum(part.decodes for part in placed),
            pending_decode_context_tokens=view.pending_decode_context_tokens
            + sum(part.context_tokens for part in placed),
        )

    def num_unreported(self, instance_id: str) -> int:
        return len(self._placed.get(instance_id, {}))

    def pool(self, now_s: float, unsplit_classes: frozenset[str] = frozenset()) -> PoolView:
        """The pool as the policy should see it. Cheap: views are kept until something changes."""
        views = tuple(self._views.values())
        return PoolView(now_s, views, unsplit_classes=unsplit_classes)
