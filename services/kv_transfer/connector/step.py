"""What the connector's two sides tell each other with every engine step.

Scheduler side -> workers: ``StepTransfers``; workers -> scheduler side: ``WorkerNews``. Both are
pickled when workers are processes of their own (tensor parallelism), so they carry plain data.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)


@dataclass(frozen=True, slots=True)
class Offer:
    """Alpha: a peer and a link to send one handoff over."""

    handoff_id: str
    epoch: int
    num_blocks: int
    peer_addresses: list[str]
    transport: str
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Filled:
    """Alpha: blocks that hold final KV once this step has run.

    ``restart``: the blocks known so far are gone (preemption); ``block_ids`` starts anew.
    ``num_final`` counts the blocks from position 0 on that will not change any more.
    """

    handoff_id: str
    block_ids: list[int]
    num_final: int
    restart: bool = False


@dataclass(frozen=True, slots=True)
class Expect:
    """Beta: blocks that wait for KV. ``block_ids[0]`` is block ``first_block`` of the sequence."""

    handoff_id: str
    epoch: int
    engine_request_id: str
    first_block: int
    block_ids: list[int]
    deadline_s: float
    admitted: bool
    """Its request may run as soon as its KV is there (all its tokens are known)."""


@dataclass(slots=True)
class StepTransfers(KVConnectorMetadata):
    """One step's orders to every worker."""

    computes: bool = False
    """The step has a forward pass."""
    offers: list[Offer] = field(default_factory=list)
    filled: list[Filled] = field(default_factory=list)
    withdrawn: dict[str, str] = field(default_factory=dict)
    """Alpha: handoff id -> why it is given up."""
    held: dict[str, str] = field(default_factory=dict)
    """Alpha: handoff id -> finished engine request whose blocks wait to be sent."""
    expects: list[Expect] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)
    """Beta: handoffs whose tokens have become known while their KV was on its way."""
    cancelled: list[str] = field(default_factory=list)
    """Beta: handoffs whose request is over or needs nothing; their blocks are left alone."""
    failed: list[str] = field(default_factory=list)
    """Beta: handoffs given up; their blocks will be computed here."""


@dataclass(slots=True)
class Tally:
    """How many ranks said a thing, and their bytes and longest time."""

    num_ranks: int = 0
    num_bytes: int = 0
    transfer_s: float = 0.0
    detail: str = ""

    def add(self, other: "Tally") -> None:
        self.num_ranks += other.num_ranks
        self.num_bytes += other.num_bytes
        self.transfer_s = max(self.transfer_s, other.transfer_s)
        self.detail = self.detail or other.detail


TOLD = (
    "first_chunk",
    "staged",
    "sent",
    "send_failed",
    "unwanted",  # the receiver gave the handoff up
    "complete",
    "receive_failed",
)


@dataclass(slots=True)
class WorkerNews(KVConnectorWorkerMetadata):
    """What happened on one rank, or (aggregated) on all: (handoff id, what) -> tally.

    What: one of ``TOLD``.
    """

    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    staging_bytes: dict[int, int] = field(default_factory=dict)
    """Rank -> bytes gathered and not yet confirmed by a peer."""
    fallbacks: int = 0
    """Links made since the last news that could not take the transport they should have."""

    def note(self, handoff_id: str, what: str, tally: Tally) -> None:
        self.tallies.setdefault((handoff_id, what), Tally()).add(tally)

    def take(self, handoff_ids: Iterable[str], what: str) -> "WorkerNews":
        """That word of these handoffs, which then is no longer here."""
        keys = [(handoff_id, what) for handoff_id in handoff_ids]
        return WorkerNews({key: self.tallies.pop(key) for key in keys if key in self.tallies})

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "WorkerNews":
        assert isinstance(other, WorkerNews)
        merged = WorkerNews(staging_bytes={**self.staging_bytes, **other.staging_bytes})
        merged.fallbacks = self.fallbacks + other.fallbacks
        for news in (self, other):
            for (handoff_id, what), tally in news.tallies.items():
                merged.note(handoff_id, what, tally)
        return merged
