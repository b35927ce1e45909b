"""The class vLLM loads (kv_connector_module_path): hands vLLM's hooks to the two sides."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import KVConnectorOutput

from services.kv_transfer.connector import continuity
from services.kv_transfer.connector.rows import layer_rows
from services.kv_transfer.connector.scheduler_side import SchedulerSide
from services.kv_transfer.connector.step import StepTransfers, WorkerNews
from services.kv_transfer.connector.step_clock import StepClock
from services.kv_transfer.connector.worker_side import WorkerSide
from services.kv_transfer.links.port import KvPort
from shared.kv_seam import engine_bell

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

log = logging.getLogger("dynaserve.kv_connector")

PIECE_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
"""A step's blocks are staged in chunks of at most this size, so that several are under way at once.
From a GPU each goes in pieces anyway, and fewer chunks leave the wire less to wait for Python."""


@dataclass
class PortHandshake(KVConnectorHandshakeMetadata):
    """What a worker tells the scheduler side once its cache exists."""

    address: str
    num_layers: int
    block_bytes: int
    layout: str


class DynaServeConnector(KVConnectorBase_V1):
    """Moves KV of positions [0, cut) from alpha's engine to beta's, in whole blocks."""

    def __init__(
        self,
        vllm_config: "VllmConfig",
        role: KVConnectorRole,
        kv_cache_config: "KVCacheConfig",
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._extra: dict[str, Any] = vllm_config.kv_transfer_config.kv_connector_extra_config
        self._port: KvPort | None = None
        self._worker: WorkerSide | None = None
        self._local_peer: DynaServeConnector | None = None
        self.clock: StepClock | None = None
        self._handshake: PortHandshake | None = None
        if role == KVConnectorRole.SCHEDULER:
            self.scheduler_side = SchedulerSide(
                block_size=vllm_config.cache_config.block_size,
                num_ranks=vllm_config.parallel_config.tensor_parallel_size,
            )
        else:
            continuity.install()
            _request_amx_permission()

    # -- worker --------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        rows = layer_rows(kv_caches)
        first = next(iter(kv_caches.values()))
        block_bytes = rows[0].shape[1]
        layout = f"{tuple(first.shape[1:])}/{tuple(first.stride()[1:])}/{first.dtype}"
        self._port = KvPort(
            rows,
            geometry=f"{len(rows)}x{block_bytes} {layout}",
            host=self._extra["host"],
            staging_bytes=self._extra["staging_bytes"],
            transports=self._extra["transports"],
            host_id=self._extra["host_id"],
            wake=engine_bell.set,
        )
        self._worker = WorkerSide(
            self._port,
            rank=get_tensor_model_parallel_rank(),
            max_piece_blocks=min(
                self._port.max_chunk_blocks,
                max(1, PIECE_BYTES[first.device.type] // (len(rows) * block_bytes)),
            ),
        )
        if first.is_cuda:
            self.clock = StepClock(lambda: torch.cuda.Event(enable_timing=True))
        self._handshake = PortHandshake(self._port.address, len(rows), block_bytes, layout)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return self._handshake

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        if self._worker is not None and isinstance(connector_metadata, StepTransfers):
            self._worker.take_orders(connector_metadata)
            if self.clock is not None and connector_metadata.computes:
                self.clock.begin()

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        """Loads are under way since the step's orders were bound."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are whole before a request runs."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, *args: Any, **kw: Any) -> None:
        """All layers are staged together, after the forward pass."""

    def wait_for_save(self) -> None:
        if self._worker is not None:
            metadata = self._get_connector_metadata()
            assert isinstance(metadata, StepTransfers)
            if self.clock is not None:
                self.clock.end()
            self._worker.stage(metadata.filled)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return self._worker.take_finished() if self._worker is not None else (None, None)

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.take_bad_block_ids() if self._worker is not None else set()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        return self._worker.take_news() if self._worker is not None else None

    def shutdown(self) -> None:
        if self._port is not None:
            self._port.close()
            self._port = None
            self._worker = None

    # -- scheduler -----------------------------------------------------------------------------

    def set_xfer_handshake_metadata(
        self, metadata: dict[int, KVConnectorHandshakeMetadata]
    ) -> None:
        ranks = [metadata[rank] for rank in sorted(metadata)]
        first = ranks[0]
        assert isinstance(first, PortHandshake)
        self.scheduler_side.kv_addresses = [
            rank.address for rank in ranks if isinstance(rank, PortHandshake)
        ]
        self.scheduler_side.kv_geometry = (first.num_layers, first.block_bytes, first.layout)

    def on_new_request(self, request: "Request") -> None:
        self.scheduler_side.on_new_request(request)

    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        return self.scheduler_side.num_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        self.scheduler_side.on_allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self.scheduler_side.build_orders(scheduler_output)

    def hear_arrivals(self) -> KVConnectorOutput | None:
        """Called by the scheduler before it schedules: KV that has arrived since the last step.

        vLLM itself tells of it with a step's output, two steps late where steps overlap. Only where
        the worker is in this process; else None, and vLLM's way remains.
        """
        peer = self._worker_in_this_process()
        worker = peer._worker if peer is not None else None
        if worker is None or not self.scheduler_side.is_expecting:
            return None
        self.scheduler_side.admit_at_once(worker.admit)
        request_ids, news = worker.take_arrived()
        if not request_ids:
            return None
        return KVConnectorOutput(finished_recving=request_ids, kv_connector_worker_meta=news)

    def take_step_s(self, follows: bool) -> float | None:
        """What the device took for the oldest step not asked for yet (see ``StepClock``); None
        where it is not known here."""
        peer = self._worker_in_this_process()
        return peer.clock.take_s(follows) if peer is not None and peer.clock is not None else None

    def _worker_in_this_process(self) -> "DynaServeConnector | None":
        """The worker's half of the connector, unless the worker is a process of its own."""
        if self._local_peer is None and has_kv_transfer_group():
            peer = get_kv_transfer_group()
            if isinstance(peer, DynaServeConnector):
                self._local_peer = peer
        return self._local_peer

    def hear_workers(self, output: KVConnectorOutput) -> None:
        """Called by the scheduler before it processes a step, so that what finished is known."""
        if isinstance(output.kv_connector_worker_meta, WorkerNews):
            self.scheduler_side.hear(output.kv_connector_worker_meta)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self.scheduler_side.on_transfers_finished(
            connector_output.finished_sending or set(), connector_output.finished_recving or set()
        )

    def request_finished(
        self, request: "Request", block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.scheduler_side.on_request_finished(request), None

    def has_pending_push_work(self) -> bool:
        return self.scheduler_side.is_sending


def _request_amx_permission() -> None:
    """On an AMX host the first bf16 attention may run before AMX is allowed and end in SIGILL."""
    if not torch.cuda.is_available() and hasattr(torch.cpu, "_init_amx"):
        torch.cpu._init_amx()
