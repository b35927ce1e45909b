"""Limits of one KV port."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinkTuning:
    """Every wait and every queue of the data plane is bounded by one of these."""

    connect_timeout_s: float = 5.0  # dial and handshake, each
    stall_timeout_s: float = 10.0  # a peer that takes or gives no byte mid-message is dead
    join_timeout_s: float = 5.0  # close(): waiting for the threads
    piece_bytes: int = 1 << 20  # scattered under one lock: bounds how long cancel() waits
    outbox_messages: int = 4096
    early_offers: int = 1024
    early_offer_ttl_s: float = 30.0
    incoming_links: int = 256
    remembered_handoffs: int = 4096  # ended ones, kept so that stragglers are refused
