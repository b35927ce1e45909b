"""What a port tells the engine's thread."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Readied:
    """Outgoing: the receiver holds its blocks and wants those from ``first_block`` on."""

    handoff_id: str
    epoch: int
    first_block: int
    wait_s: float  # since the offer


@dataclass(frozen=True)
class Sent:
    """Outgoing: the receiver has confirmed every chunk."""

    handoff_id: str
    epoch: int
    transport: str
    num_bytes: int
    num_chunks: int
    transfer_s: float  # time with a chunk of this handoff on the wire
    tail_s: float  # from staging the last chunk to its confirmation


@dataclass(frozen=True)
class Arriving:
    """Incoming: the first chunk is in its blocks."""

    handoff_id: str
    epoch: int
    wait_s: float  # since expect()


@dataclass(frozen=True)
class Completed:
    """Incoming: every block from ``first_block`` on is filled."""

    handoff_id: str
    epoch: int
    transport: str
    num_bytes: int
    num_chunks: int
    transfer_s: float  # time spent receiving and scattering its chunks
    wait_s: float  # since expect()


@dataclass(frozen=True)
class Failed:
    """The handoff is over on this side; ``num_blocks`` went (came) before that."""

    handoff_id: str
    epoch: int
    reason: str
    num_blocks: int
    unwanted: bool = False  # outgoing: the receiver gave it up, and says itself why


@dataclass
class PortEvents:
    """News since the last poll; a handoff ends with exactly one of sent, completed and failed,
    unless the caller itself ended it (withdraw, cancel): of those nothing more is heard."""

    ready: list[Readied] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    failed_outgoing: list[Failed] = field(default_factory=list)
    arriving: list[Arriving] = field(default_factory=list)
    complete: list[Completed] = field(default_factory=list)
    failed_incoming: list[Failed] = field(default_factory=list)
    staging_freed: bool = False  # stage() had found no room, and there is some again

    def __bool__(self) -> bool:
        return self.staging_freed or any(self._lists())

    def _lists(self) -> tuple[list[object], ...]:
        return (*self.outgoing_lists(), *self.incoming_lists())

    def outgoing_lists(self) -> tuple[list[object], ...]:
        return (self.ready, self.sent, self.failed_outgoing)  # type: ignore[return-value]

    def incoming_lists(self) -> tuple[list[object], ...]:
        return (self.arriving, self.complete, self.failed_incoming)  # type: ignore[return-value]


class News:
    """The box between the port's threads and the engine's: put in anywhere, taken out by poll().

    ``add`` is called under the locks of the caller, ``announce`` outside of them, because it
    runs the connector's ``wake``.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._box = PortEvents()
        self._silent = True

    def add(self, event: Readied | Sent | Arriving | Completed) -> None:
        with self._lock:
            match event:
                case Readied():
                    self._box.ready.append(event)
                case Sent():
                    self._box.sent.append(event)
                case Arriving():
                    self._box.arriving.append(event)
                case Completed():
                    self._box.complete.append(event)

    def add_failed(self, event: Failed, *, outgoing: bool) -> None:
        with self._lock:
            box = self._box
            (box.failed_outgoing if outgoing else box.failed_incoming).append(event)

    def add_staging_freed(self) -> None:
        with self._lock:
            self._box.staging_freed = True

    def forget(self, handoff_id: str, *, outgoing: bool) -> None:
        """Drop what has not been polled: the caller ended the handoff itself."""
        with self._lock:
            box = self._box
            for events in box.outgoing_lists() if outgoing else box.incoming_lists():
                events[:] = [e for e in events if getattr(e, "handoff_id", None) != handoff_id]

    def announce(self) -> None:
        with self._lock:
            call = self._silent and bool(self._box)
            self._silent = self._silent and not call
        if call:
            self._wake()

    def take(self) -> PortEvents:
        with self._lock:
            box, self._box, self._silent = self._box, PortEvents(), True
        return box
