"""What an engine asks of the KV connector inside it, and what the connector tells.

The connector (services/kv_transfer/connector) lives inside vLLM, the engine's thread drives it
(services/gpu_instance/engine); neither imports the other. All calls are made on that thread.
"""

import threading
from dataclasses import dataclass
from typing import Protocol

from shared.schemas.handoff import HandoffAbort, HandoffPhase, HandoffStart, Side
from shared.schemas.segment import Continuation

engine_bell = threading.Event()
"""Rung when there is news for the engine's thread: bytes arrived, a message came, staging is free.

One per process. The engine waits on it instead of spinning while it has nothing to compute.
"""


@dataclass(frozen=True, slots=True)
class HandoffSignal:
    """What happened to this engine's side of a handoff; becomes a ``HandoffEvent``."""

    handoff_id: str
    request_id: str
    epoch: int
    side: Side
    phase: HandoffPhase
    num_bytes: int = 0
    transfer_s: float = 0.0
    exposed_s: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LostSegment:
    """A beta segment that can neither load nor compute what is missing."""

    engine_request_id: str
    reason: str


class KvScheduler(Protocol):
    """The connector's scheduler side as its engine drives it."""

    @property
    def kv_addresses(self) -> list[str]:
        """KV port of each tensor-parallel rank."""

    @property
    def kv_geometry(self) -> tuple[int, int, str]:
        """(number of layers, bytes of one block of one layer, layout) on one rank."""

    @property
    def num_open(self) -> int:
        """Handoffs this side takes part in right now."""

    @property
    def num_held_blocks(self) -> int:
        """Blocks of finished requests that wait to be sent, under a lease."""

    @property
    def staging_bytes_in_use(self) -> int:
        """Bytes gathered and not yet confirmed by a peer, all ranks of this process."""

    def start(self, start: HandoffStart) -> None:
        """The link to use. May come before its request is added."""

    def abort(self, abort: HandoffAbort) -> None:
        """Free what is held; beta recomputes when it knows its tokens, else it is lost."""

    def cancel(self, request_id: str, epoch: int) -> None:
        """Give back the blocks of alphas that have ended and still wait to be fetched."""

    def continue_with(self, continuation: Continuation) -> bool:
        """Beta: the tokens alpha made. False when there is no such request (yet)."""

    def expire(self, now_s: float) -> list[LostSegment]:
        """Apply deadlines and leases (unix time); betas that are lost must be aborted."""

    def take_signals(self) -> list[HandoffSignal]:
        """News since the last call."""
