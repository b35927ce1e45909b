"""The transports there are, by name."""

from collections.abc import Sequence

import torch

from services.kv_transfer.links.device_link import DeviceTransport
from services.kv_transfer.links.pair import GlooPair, NcclPair
from services.kv_transfer.links.paths import Transport
from services.kv_transfer.links.shm import ShmTransport
from services.kv_transfer.links.tcp import TcpTransport

TRANSPORTS: dict[str, Transport] = {
    "nccl": DeviceTransport("nccl", NcclPair),
    "gloo": DeviceTransport("gloo", GlooPair),  # nccl's protocol without a GPU; for tests
    "shm": ShmTransport(),
    "tcp": TcpTransport(),
}


def check_transports(names: Sequence[str], device: torch.device) -> None:
    """Raises ValueError for names that mean nothing, or nothing on this device."""
    unknown = set(names) - set(TRANSPORTS)
    if unknown or not names:
        raise ValueError(f"transports {sorted(unknown)}: choose from {sorted(TRANSPORTS)}")
    if "nccl" in names and (device.type != "cuda" or not torch.distributed.is_nccl_available()):
        raise ValueError(
            f"transport 'nccl' needs a GPU and torch with NCCL; the cache is on {device}"
        )
    if "gloo" in names and device.type != "cpu":
        raise ValueError(f"transport 'gloo' moves host memory; the cache is on {device}")
