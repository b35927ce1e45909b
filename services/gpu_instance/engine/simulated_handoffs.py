"""Handoffs of the simulated engine, both sides, driven by the messages that drive the real ones.

Alpha at the cut holds its blocks until the tail of its KV has left, once it knows the link
(HandoffStart). Beta holds blocks for [0, cut) from the start and runs when it knows the link, alpha
has reached the cut (Continuation) and the tail has arrived. Past the deadline, or on an abort, beta
computes everything itself if it knows the tokens, and fails with ``handoff_lost`` if not.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from services.gpu_instance.engine.seam import Emission, HandoffSignal
from services.gpu_instance.engine.simulated_request import SimulatedRequest
from shared.schemas.handoff import HandoffAbort, HandoffPhase, HandoffStart, Side
from shared.schemas.message import unpack_tokens
from shared.schemas.segment import Continuation, HandoffRef

if TYPE_CHECKING:
    from services.gpu_instance.engine.simulated import SimulatedEngine
    from services.gpu_instance.engine.simulated_steps import Step

M = TypeVar("M")
MAX_EARLY = 4096
LEASE_S = 5.0
"""How long alpha holds blocks past the deadline when no coordinator ever spoke."""


@dataclass(eq=False, slots=True)
class SimulatedHandoff:
    """One side of one handoff. It is open from ``add`` until the engine holds nothing for it."""

    request: SimulatedRequest
    ref: HandoffRef
    side: Side
    start: HandoffStart | None = None
    continuation: Continuation | None = None
    aborted: bool = False
    held: bool = False
    moving: bool = False
    sent_first: bool = False
    at_cut_s: float | None = None
    timers: list[asyncio.TimerHandle] | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.ref.handoff_id, self.request.key[1]


class _Early(OrderedDict[str, M]):
    """Messages that came before their segment, the newest few thousand."""

    def keep(self, handoff_id: str, message: M) -> None:
        self[handoff_id] = message
        while len(self) > MAX_EARLY:
            self.popitem(last=False)


class SimulatedHandoffs:
    """All handoffs of one engine."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self._open: dict[str, SimulatedHandoff] = {}
        self._unheld: OrderedDict[str, SimulatedHandoff] = OrderedDict()
        self._early_starts: _Early[HandoffStart] = _Early()
        self._early_continuations: _Early[Continuation] = _Early()
        self._early_aborts: _Early[HandoffAbort] = _Early()

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def holding(self) -> list[SimulatedHandoff]:
        """Betas that wait for blocks or for KV."""
        return [handoff for handoff in self._open.values() if handoff.side == "beta"]

    # -- what happens to a handoff ----------------------------------------------------------------

    def add(self, request: SimulatedRequest, ref: HandoffRef) -> None:
        side: Side = "alpha" if request.segment.role == "alpha" else "beta"
        handoff = SimulatedHandoff(request, ref, side)
        handoff.start = self._early_starts.pop(ref.handoff_id, None)
        handoff.continuation = self._early_continuations.pop(ref.handoff_id, None)
        self._open[ref.handoff_id] = handoff
        abort = self._early_aborts.pop(ref.handoff_id, None)
        if side == "alpha":
            self._engine.enqueue(request)
            if abort is not None:
                self.abort(abort)
            return
        request.phase = "holding"
        self._unheld[ref.handoff_id] = handoff
        deadline = self._engine.at_unix(ref.deadline_s, lambda: self._give_up(handoff, "deadline"))
        handoff.timers = [deadline]
        if handoff.continuation is not None:
            self._continue(handoff, handoff.continuation)
        if abort is not None:
            self._give_up(handoff, abort.reason)
        self._engine.kick()

    def start(self, start: HandoffStart) -> None:
        handoff = self._open.get(start.handoff_id)
        if handoff is None:
            self._early_starts.keep(start.handoff_id, start)
            return
        handoff.start = start
        self._move(handoff)

    def continue_with(self, continuation: Continuation) -> None:
        handoff = self._open.get(continuation.handoff_id)
        if handoff is None:
            self._early_continuations.keep(continuation.handoff_id, continuation)
        elif handoff.side == "beta" and handoff.request.key[1] == continuation.epoch:
            self._continue(handoff, continuation)

    def abort(self, abort: HandoffAbort) -> None:
        handoff = self._open.get(abort.handoff_id)
        if handoff is None:
            self._early_aborts.keep(abort.handoff_id, abort)
        elif handoff.side == "beta":
            self._give_up(handoff, abort.reason)
        elif handoff.at_cut_s is not None:
            self._release(handoff, "released", abort.reason)
        elif not handoff.aborted:
            # It goes on to the cut: beta may want its tokens. Its blocks are its own again.
            handoff.aborted = True
            self._signal(handoff, "released", detail=abort.reason)

    def reached_cut(self, request: SimulatedRequest) -> None:
        """Alpha has computed [0, cut): hold its blocks until they have left."""
        handoff = self._of(request)
        handoff.at_cut_s = self._engine.now_s()
        if handoff.aborted:
            self._engine.drop(request)
            return
        lease_s = handoff.start.lease_s if handoff.start is not None else LEASE_S
        expiry = self._engine.at_unix(
            handoff.ref.deadline_s + lease_s, lambda: self._release(handoff, "failed", "lease over")
        )
        handoff.timers = [expiry]
        self._move(handoff)

    def computed(self, step: Step) -> None:
        """A step is over: alphas whose link is up have sent their first chunk."""
        for request, _ in step.work:
            if request.segment.role == "alpha" and request.phase == "running":
                handoff = self._of(request)
                if handoff.start is not None and not handoff.sent_first:
                    handoff.sent_first = True
                    self._signal(handoff, "first_chunk")

    def ended(self, request: SimulatedRequest) -> None:
        """A segment ended by itself; alpha did so before the cut."""
        if request.segment.role == "alpha":
            self._signal(self._of(request), "ended")

    def cancelled(self, request: SimulatedRequest, reason: str) -> None:
        """The request is about to be dropped; what is held for a handoff goes with it."""
        ref = request.segment.handoff
        if ref is not None and ref.handoff_id in self._open:
            self._signal(self._open[ref.handoff_id], "cancelled", detail=reason)

    def forget(self, request: SimulatedRequest) -> None:
        """The request is over on this engine."""
        ref = request.segment.handoff
        handoff = self._open.get(ref.handoff_id) if ref is not None else None
        if handoff is not None and handoff.request is request:
            self._close(handoff)

    def hold_blocks(self) -> None:
        """Blocks for the betas that wait for them, first come first served."""
        while self._unheld:
            handoff = next(iter(self._unheld.values()))
            if not self._engine.steps.grow_to(handoff.request, handoff.ref.cut):
                return
            del self._unheld[handoff.ref.handoff_id]
            handoff.held = True
            self._signal(handoff, "held")
            self._move(handoff)

    # -- the way through --------------------------------------------------------------------------

    def _continue(self, handoff: SimulatedHandoff, continuation: Continuation) -> None:
        if continuation.ended:
            self._signal(handoff, "cancelled", detail="alpha ended before the cut")
            self._engine.drop(handoff.request)
            return
        handoff.continuation = continuation
        request = handoff.request
        del request.tokens[request.num_prompt_tokens :]
        request.tokens += unpack_tokens(continuation.token_ids)
        request.first_visible = len(request.tokens)
        self._move(handoff)

    def _move(self, handoff: SimulatedHandoff) -> None:
        """Start what is left to transfer once everything it needs is there."""
        at_cut = handoff.at_cut_s is not None
        if handoff.side == "beta":
            at_cut = handoff.continuation is not None and handoff.held
        if handoff.moving or handoff.start is None or not at_cut:
            return
        handoff.moving = True
        tail_s = self._tail_bytes(handoff) / self._engine.settings.link_bytes_per_s
        finish = self._arrived if handoff.side == "beta" else self._sent
        timer = self._engine.later(tail_s, lambda: finish(handoff, tail_s))
        handoff.timers = [*(handoff.timers or []), timer]

    def _sent(self, handoff: SimulatedHandoff, tail_s: float) -> None:
        if not handoff.sent_first:
            self._signal(handoff, "first_chunk")
        num_bytes = self._bytes(handoff.ref.cut)
        self._signal(handoff, "sent_all", num_bytes=num_bytes, transfer_s=tail_s)
        self._release(handoff, "released", "")

    def _arrived(self, handoff: SimulatedHandoff, tail_s: float) -> None:
        request = handoff.request
        num_bytes = self._bytes(handoff.ref.cut)
        self._signal(handoff, "complete", num_bytes=num_bytes, transfer_s=tail_s, exposed_s=tail_s)
        request.computed = request.loaded_tokens = handoff.ref.cut
        self._adopt(handoff, "adopted")

    def _give_up(self, handoff: SimulatedHandoff, reason: str) -> None:
        """Beta does without the KV if it can."""
        if self._open.get(handoff.ref.handoff_id) is not handoff:
            return
        if handoff.continuation is not None or handoff.ref.cut < handoff.request.num_prompt_tokens:
            self._adopt(handoff, "recomputed", reason)
            return
        self._signal(handoff, "failed", detail=reason)
        emission = _lost(handoff, reason)
        self._engine.drop(handoff.request)
        self._engine.emit(emission)

    def _adopt(self, handoff: SimulatedHandoff, phase: HandoffPhase, detail: str = "") -> None:
        self._close(handoff)
        self._signal(handoff, phase, detail=detail)
        self._engine.enqueue(handoff.request, first=handoff.held)

    def _release(self, handoff: SimulatedHandoff, phase: HandoffPhase, detail: str) -> None:
        """Alpha holds nothing any more."""
        self._engine.drop(handoff.request)
        self._signal(handoff, phase, detail=detail)

    def _close(self, handoff: SimulatedHandoff) -> None:
        for timer in handoff.timers or ():
            timer.cancel()
        self._open.pop(handoff.ref.handoff_id, None)
        self._unheld.pop(handoff.ref.handoff_id, None)

    def _of(self, request: SimulatedRequest) -> SimulatedHandoff:
        ref = request.segment.handoff
        if ref is None:
            raise AssertionError(f"{request.key} takes part in no handoff")
        return self._open[ref.handoff_id]

    def _bytes(self, num_tokens: int) -> int:
        settings = self._engine.settings
        return (
            self._engine.steps.blocks_for(num_tokens)
            * settings.block_size
            * (settings.kv_token_bytes)
        )

    def _tail_bytes(self, handoff: SimulatedHandoff) -> int:
        """What could not leave while alpha still computed: the last chunk, or the last block."""
        settings = self._engine.settings
        if handoff.ref.cut <= handoff.request.num_prompt_tokens:
            return self._bytes(min(handoff.ref.cut, settings.max_num_batched_tokens))
        return self._bytes(settings.block_size)

    def _signal(
        self,
        handoff: SimulatedHandoff,
        phase: HandoffPhase,
        num_bytes: int = 0,
        transfer_s: float = 0.0,
        exposed_s: float = 0.0,
        detail: str = "",
    ) -> None:
        self._engine.events.on_handoff(
            HandoffSignal(
                handoff_id=handoff.ref.handoff_id,
                request_id=handoff.request.key[0],
                epoch=handoff.request.key[1],
                side=handoff.side,
                phase=phase,
                num_bytes=num_bytes,
                transfer_s=transfer_s,
                exposed_s=exposed_s,
                detail=detail,
            )
        )


def _lost(handoff: SimulatedHandoff, reason: str) -> Emission:
    request = handoff.request
    return Emission(
        request_id=request.key[0],
        epoch=request.key[1],
        role="beta",
        position=len(request.tokens),
        token_ids=[],
        failure=("handoff_lost", f"the KV of [0, {handoff.ref.cut}) did not come: {reason}"),
    )
