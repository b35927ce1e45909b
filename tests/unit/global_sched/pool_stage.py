"""Records, loads and questions for tests of the scheduler."""

from shared.clock import SystemClock
from shared.schemas.handoff import Transport
from shared.schemas.message import pack_tokens
from shared.schemas.place import Place
from shared.schemas.registry import CoordinatorRecord, Geometry, InstanceRecord
from shared.schemas.request import GenerationRequest, Slo
from shared.schemas.telemetry import InstanceLoad

GEOMETRY = Geometry(
    model="m",
    model_hash="h",
    dtype="float32",
    kv_dtype="float32",
    block_size=16,
    num_layers=2,
    block_bytes=1600,
    kv_layout="x",
    tensor_parallel_size=1,
    vllm_version="0",
)


def instance(instance_id: str, **changes: object) -> InstanceRecord:
    """A ready instance."""
    fields: dict[str, object] = {
        "instance_id": instance_id,
        "host_id": "host",
        "geometry": GEOMETRY,
        "kv_addresses": [f"{instance_id}:1"],
        "transports": ["shm", "tcp"],
        "num_blocks": 1000,
        "max_model_len": 4096,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "supported_tasks": ["generate"],
        "device": "none",
        "started_s": 0.0,
    }
    return InstanceRecord.model_validate(fields | changes)


def coordinator(coordinator_id: str = "c") -> CoordinatorRecord:
    return CoordinatorRecord(instance_id=coordinator_id, started_s=0.0)


def load(instance_id: str, sequence: int = 1, **changes: object) -> InstanceLoad:
    """An idle instance's report."""
    fields: dict[str, object] = {
        "instance_id": instance_id,
        "sequence": sequence,
        "at_s": SystemClock().unix_s(),
        "num_running": 0,
        "num_waiting": 0,
        "num_decodes": 0,
        "context_sum": 0,
        "outstanding_prefill_tokens": 0,
        "free_blocks": 1000,
        "num_blocks": 1000,
        "max_num_batched_tokens": 512,
    }
    return InstanceLoad.model_validate(fields | changes)


def question(
    request_id: str = "r",
    epoch: int = 1,
    prompt: int = 100,
    max_tokens: int = 20,
    cut: int | None = None,
    expires_s: float = 60.0,
    avoid: tuple[str, ...] = (),
    transport: Transport | None = None,
    **changes: object,
) -> Place:
    """What a gateway asks."""
    now_s = SystemClock().unix_s()
    fields: dict[str, object] = {
        "request_id": request_id,
        "prompt_token_ids": pack_tokens(range(prompt)),
        "max_tokens": max_tokens,
        "arrival_time_s": now_s,
        "deadline_s": now_s + expires_s,
        "slo": Slo(ttft_s=1.0, tbt_s=0.1),
    }
    request = GenerationRequest.model_validate(fields | changes)
    return Place(
        request=request,
        epoch=epoch,
        gateway_id="g",
        forced_cut=cut,
        avoid=list(avoid),
        forced_transport=transport,
    )
