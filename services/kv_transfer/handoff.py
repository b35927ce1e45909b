"""One handoff as a pure state machine: inputs with their time go in, commands come out.

    opened -> streaming -> ready -> adopted -> released        (what is hoped for)
    opened, streaming, ready -> failed -> released             (nothing more is handed over)

Beside the phase each side has its own ending: it confirms that it holds nothing for the handoff
any more, or it is lost, or its lease runs out and it is reported as an orphan. The machine is
released, and says Close as its last word, when both sides have ended. Flags may come in any
order; those of another epoch are ignored, repeated ones change nothing.
"""

from dataclasses import dataclass, field
from typing import Literal

from shared.schemas.handoff import HandoffPhase, Side

Phase = Literal["opened", "streaming", "ready", "adopted", "failed", "released"]
Outcome = Literal["adopted", "not_needed", "recomputed", "ended", "cancelled", "failed"]
SIDES: tuple[Side, Side] = ("alpha", "beta")

# With these a side says that it holds nothing for the handoff any more. An adopted block belongs
# to beta's request, no longer to the handoff.
ENDINGS: dict[Side, frozenset[HandoffPhase]] = {
    "alpha": frozenset({"released", "ended", "cancelled", "failed"}),
    "beta": frozenset({"adopted", "not_needed", "recomputed", "cancelled", "failed"}),
}
# With these a side calls the handoff off, and the outcome is named after it.
CALLS_OFF: dict[HandoffPhase, Outcome] = {
    "ended": "ended",
    "not_needed": "not_needed",
    "recomputed": "recomputed",
    "cancelled": "cancelled",
    "failed": "failed",
}
MOVES: frozenset[HandoffPhase] = frozenset({"first_chunk", "sent_all"})


@dataclass(frozen=True)
class Opened:
    """``deadline_s``: time, on the clock of ``now_s``, by which beta must be complete. Each side
    frees what it holds ``lease_s`` after that by itself."""

    handoff_id: str
    epoch: int
    alpha_id: str
    beta_id: str
    num_tokens: int
    deadline_s: float
    lease_s: float
    now_s: float


@dataclass(frozen=True)
class SideEvent:
    """What one side says of itself; the figures are totals, not increments."""

    handoff_id: str
    epoch: int
    side: Side
    phase: HandoffPhase
    now_s: float
    num_bytes: int = 0
    transfer_s: float = 0.0
    exposed_s: float = 0.0
    detail: str = ""


@dataclass(frozen=True)
class InstanceLost:
    instance_id: str
    now_s: float


@dataclass(frozen=True)
class Tick:
    now_s: float


@dataclass(frozen=True)
class Start:
    """Tell a side about its handoff."""

    handoff_id: str
    epoch: int
    side: Side
    instance_id: str
    peer_id: str
    num_tokens: int
    deadline_s: float
    lease_s: float


@dataclass(frozen=True)
class Abort:
    """Tell a side to free what it holds and to confirm."""

    handoff_id: str
    epoch: int
    side: Side
    instance_id: str
    reason: str


@dataclass(frozen=True)
class Orphan:
    """A side's lease ran out unconfirmed: its blocks may be lost."""

    handoff_id: str
    epoch: int
    side: Side
    instance_id: str


@dataclass(frozen=True)
class Close:
    """How it ended; times are on the coordinator's clock, None for what never happened."""

    handoff_id: str
    epoch: int
    alpha_id: str
    beta_id: str
    outcome: Outcome
    reason: str
    num_tokens: int
    num_bytes: int
    transfer_s: float
    exposed_s: float
    opened_at_s: float
    streaming_at_s: float | None
    ready_at_s: float | None
    adopted_at_s: float | None
    released_at_s: float
    orphans: tuple[str, ...]

    @property
    def total_s(self) -> float:
        return self.released_at_s - self.opened_at_s


Command = Start | Abort | Orphan | Close
Ending = Literal["confirmed", "lost", "expired"]


@dataclass
class _Figures:
    num_bytes: int = 0
    transfer_s: float = 0.0
    exposed_s: float = 0.0

    def take(self, event: SideEvent) -> None:
        self.num_bytes = max(self.num_bytes, event.num_bytes)
        self.transfer_s = max(self.transfer_s, event.transfer_s)
        self.exposed_s = max(self.exposed_s, event.exposed_s)


@dataclass
class Handoff:
    """Invariant: ``outcome`` is set once, and Close is issued once, when both sides have ended."""

    opened: Opened
    phase: Phase = "opened"
    outcome: Outcome | None = None
    reason: str = ""
    endings: dict[Side, Ending] = field(default_factory=dict)
    _at: dict[Phase, float] = field(default_factory=dict)
    _aborted: set[Side] = field(default_factory=set)
    _figures: _Figures = field(default_factory=_Figures)

    @property
    def lease_until_s(self) -> float:
        return self.opened.deadline_s + self.opened.lease_s

    @property
    def due_s(self) -> float:
        """When the next Tick may change something."""
        under_way = self.phase in ("opened", "streaming")
        return self.opened.deadline_s if under_way else self.lease_until_s

    def instance_of(self, side: Side) -> str:
        return self.opened.alpha_id if side == "alpha" else self.opened.beta_id

    def start(self) -> list[Command]:
        return [self._start("alpha", "beta"), self._start("beta", "alpha")]

    def apply(self, event: SideEvent | InstanceLost | Tick) -> list[Command]:
        if self.phase == "released":
            return []
        match event:
            case SideEvent():
                commands = self._hear(event)
            case InstanceLost():
                commands = self._lose(event)
            case _:
                commands = self._tick(event.now_s)
        return commands + self._close_if_over(event.now_s)

    def call_off(self, outcome: Outcome, reason: str, now_s: float) -> list[Command]:
        """Nothing more is handed over; tell whoever still holds something."""
        if self.outcome is not None:
            return []
        self.outcome, self.reason = outcome, reason
        self._enter("failed", now_s)
        return [self._abort(side) for side in SIDES if self._must_be_told(side)]

    def _hear(self, event: SideEvent) -> list[Command]:
        if event.epoch != self.opened.epoch:
            return []
        self._figures.take(event)
        if event.phase in ENDINGS[event.side]:
            self.endings.setdefault(event.side, "confirmed")
        if event.phase in CALLS_OFF and self._can_call_off(event.side):
            reason = f"{event.side} {event.phase}" + (f": {event.detail}" if event.detail else "")
            return self.call_off(CALLS_OFF[event.phase], reason, event.now_s)
        if self.outcome is None:
            self._advance(event)
        return []

    def _can_call_off(self, side: Side) -> bool:
        """Alpha has no say once everything is at beta."""
        return side == "beta" or self.phase in ("opened", "streaming")

    def _advance(self, event: SideEvent) -> None:
        if event.phase in MOVES and self.phase == "opened":
            self._enter("streaming", event.now_s)
        elif event.side == "beta" and event.phase == "complete":
            self._enter("ready", event.now_s)
        elif event.side == "beta" and event.phase == "adopted":
            self.outcome = "adopted"
            self._enter("adopted", event.now_s)

    def _lose(self, event: InstanceLost) -> list[Command]:
        lost = [side for side in SIDES if self.instance_of(side) == event.instance_id]
        for side in lost:
            self.endings.setdefault(side, "lost")
        if not any(self._can_call_off(side) for side in lost):
            return []
        return self.call_off("failed", f"instance {event.instance_id} was lost", event.now_s)

    def _tick(self, now_s: float) -> list[Command]:
        commands: list[Command] = []
        if now_s >= self.opened.deadline_s and self.phase in ("opened", "streaming"):
            commands += self.call_off("failed", f"deadline passed while {self.phase}", now_s)
        if now_s >= self.lease_until_s:
            commands += self._expire(now_s)
        return commands

    def _expire(self, now_s: float) -> list[Command]:
        late = [side for side in SIDES if side not in self.endings]
        for side in late:
            self.endings[side] = "expired"
        told = self.call_off("failed", "beta never adopted", now_s)
        return told + [
            Orphan(self.opened.handoff_id, self.opened.epoch, side, self.instance_of(side))
            for side in late
        ]

    def _close_if_over(self, now_s: float) -> list[Command]:
        if len(self.endings) < len(SIDES):
            return []
        self._enter("released", now_s)
        return [self._close(now_s)]

    def _enter(self, phase: Phase, now_s: float) -> None:
        self.phase = phase
        self._at.setdefault(phase, now_s)

    def _must_be_told(self, side: Side) -> bool:
        return side not in self.endings and side not in self._aborted

    def _abort(self, side: Side) -> Abort:
        self._aborted.add(side)
        opened = self.opened
        return Abort(opened.handoff_id, opened.epoch, side, self.instance_of(side), self.reason)

    def _start(self, side: Side, other: Side) -> Start:
        opened = self.opened
        return Start(
            opened.handoff_id,
            opened.epoch,
            side,
            self.instance_of(side),
            self.instance_of(other),
            opened.num_tokens,
            opened.deadline_s,
            opened.lease_s,
        )

    def _close(self, now_s: float) -> Close:
        opened, figures = self.opened, self._figures
        assert self.outcome is not None  # beta's ending sets it, whichever it is
        return Close(
            opened.handoff_id,
            opened.epoch,
            opened.alpha_id,
            opened.beta_id,
            self.outcome,
            self.reason,
            opened.num_tokens,
            figures.num_bytes,
            figures.transfer_s,
            figures.exposed_s,
            opened.now_s,
            self._at.get("streaming"),
            self._at.get("ready"),
            self._at.get("adopted"),
            now_s,
            tuple(self.instance_of(s) for s in SIDES if self.endings[s] == "expired"),
        )
