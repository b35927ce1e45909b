"""All open handoffs of one coordinator: a bounded table of the machines in handoff.py."""

import heapq
from collections import OrderedDict, defaultdict

from services.kv_transfer.handoff import (
    Close,
    Command,
    Handoff,
    InstanceLost,
    Opened,
    Phase,
    SideEvent,
    Tick,
)
from shared.errors import BookFull

Key = tuple[str, int]  # handoff id, epoch


class HandoffBook:
    """Pure, like the machines it holds. A handoff reopened at a later epoch calls the earlier one
    off, which stays in the book until both its sides have ended."""

    def __init__(self, max_open: int, remember: int = 65536) -> None:
        self.ignored = 0  # events of unknown handoffs and other epochs, repeated openings
        self._max_open = max_open
        self._remember = remember
        self._open: dict[Key, Handoff] = {}
        self._latest: OrderedDict[str, int] = OrderedDict()  # epoch by id, closed ones included
        self._at: dict[str, set[Key]] = defaultdict(set)  # by instance
        self._due: list[tuple[float, Key]] = []  # heap; entries may be outdated

    def __len__(self) -> int:
        return len(self._open)

    def get(self, handoff_id: str, epoch: int) -> Handoff | None:
        return self._open.get((handoff_id, epoch))

    def count(self, phase: Phase) -> int:
        """Open handoffs in ``phase``; may be asked from another thread."""
        return sum(handoff.phase == phase for handoff in list(self._open.values()))

    def apply(self, event: Opened | SideEvent | InstanceLost | Tick) -> list[Command]:
        """Raises BookFull for a new handoff beyond the bound."""
        match event:
            case Opened():
                return self._add(event)
            case SideEvent():
                return self._one((event.handoff_id, event.epoch), event)
            case InstanceLost():
                keys = sorted(self._at.get(event.instance_id, ()))
                return [command for key in keys for command in self._one(key, event)]
            case _:
                return self._tick(event)

    def next_deadline(self) -> float | None:
        """When the next Tick may change something; None when nothing is open."""
        while self._due:
            due_s, key = self._due[0]
            handoff = self._open.get(key)
            if handoff is not None and handoff.due_s == due_s:
                return due_s
            heapq.heappop(self._due)
            if handoff is not None:
                heapq.heappush(self._due, (handoff.due_s, key))
        return None

    def _add(self, event: Opened) -> list[Command]:
        latest = self._latest.get(event.handoff_id, -1)
        if event.epoch <= latest:
            self.ignored += 1
            return []
        if len(self._open) >= self._max_open:
            raise BookFull(f"{len(self._open)} handoffs are open, the bound is {self._max_open}")
        commands = self._call_off_earlier((event.handoff_id, latest), event)
        key = (event.handoff_id, event.epoch)
        handoff = self._open[key] = Handoff(event)
        self._note_epoch(event)
        for instance_id in (event.alpha_id, event.beta_id):
            self._at[instance_id].add(key)
        heapq.heappush(self._due, (handoff.due_s, key))
        return commands + handoff.start()

    def _call_off_earlier(self, key: Key, event: Opened) -> list[Command]:
        earlier = self._open.get(key)
        if earlier is None:
            return []
        return earlier.call_off("failed", f"reopened at epoch {event.epoch}", event.now_s)

    def _note_epoch(self, event: Opened) -> None:
        self._latest[event.handoff_id] = event.epoch
        self._latest.move_to_end(event.handoff_id)
        while len(self._latest) > max(self._remember, self._max_open):
            self._latest.popitem(last=False)

    def _tick(self, event: Tick) -> list[Command]:
        commands: list[Command] = []
        while (due_s := self.next_deadline()) is not None and due_s <= event.now_s:
            _, key = heapq.heappop(self._due)
            commands += self._one(key, event)
            if key in self._open:
                heapq.heappush(self._due, (self._open[key].due_s, key))
        return commands

    def _one(self, key: Key, event: SideEvent | InstanceLost | Tick) -> list[Command]:
        handoff = self._open.get(key)
        if handoff is None:
            self.ignored += 1
            return []
        commands = handoff.apply(event)
        if commands and isinstance(commands[-1], Close):
            self._remove(key, handoff)
        return commands

    def _remove(self, key: Key, handoff: Handoff) -> None:
        del self._open[key]
        for instance_id in {handoff.opened.alpha_id, handoff.opened.beta_id}:
            self._at[instance_id].discard(key)
            if not self._at[instance_id]:
                del self._at[instance_id]
