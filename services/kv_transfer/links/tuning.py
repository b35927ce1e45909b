"""Limits of one KV port."""

from dataclasses import dataclass

import torch

GPU_PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class LinkTuning:
    """Every wait and every queue of the data plane is bounded by one of these."""

    connect_timeout_s: float = 5.0  # dial and handshake, each
    build_timeout_s: float = 20.0  # joining two devices (NCCL), which loads and connects a lot
    stall_timeout_s: float = 10.0  # a peer that takes or gives no byte mid-message is dead
    join_timeout_s: float = 5.0  # close(): waiting for the threads
    # Device links: gathered, sent and scattered one behind the other, so that the three overlap.
    device_piece_bytes: int = 128 << 20
    piece_bytes: int = 1 << 20  # scattered under one lock: bounds how long cancel() waits
    outbox_messages: int = 4096
    early_offers: int = 1024
    early_offer_ttl_s: float = 30.0
    incoming_links: int = 256
    remembered_handoffs: int = 4096  # ended ones, kept so that stragglers are refused

    @classmethod
    def on(cls, device: torch.device) -> "LinkTuning":
        """Through the host, copies to a GPU want to be larger than what the CPU's cache holds."""
        return cls(piece_bytes=GPU_PIECE_BYTES) if device.type == "cuda" else cls()
