"""Records in the registry bucket: who is in the pool. A record expires when its heartbeat stops."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from shared.latency_model import LatencyModel
from shared.schemas.message import InstanceId, Message, Part

InstanceRole = Literal["any", "prefill", "decode"]


class Geometry(Part):
    """What two instances must have in common to hand KV over. Compared field by field."""

    model: str = Field(description="name under which the model is served")
    model_hash: str = Field(description="hash of the model's configuration")
    dtype: str
    kv_dtype: str
    block_size: int = Field(gt=0, description="tokens")
    num_layers: int
    block_bytes: int = Field(description="one block of one layer on one rank")
    kv_layout: str
    tensor_parallel_size: int = Field(ge=1)
    vllm_version: str


class LatencyCoefficients(Part):
    """step_s = c0 + a*decodes + b*context_sum + p*prefill_tokens + q*sum(prefill x context)."""

    c0_s: float
    a_s: float
    b_s: float
    p_s: float
    q_s: float

    @classmethod
    def of(cls, model: LatencyModel) -> "LatencyCoefficients":
        """In seconds, from the model's milliseconds."""
        values = (value / 1e3 for value in model)
        return cls(**dict(zip(cls.model_fields, values, strict=True)))

    def model(self) -> LatencyModel:
        """In milliseconds, as decisions use it."""
        seconds = (self.c0_s, self.a_s, self.b_s, self.p_s, self.q_s)
        return LatencyModel(*(1e3 * value for value in seconds))


class InstanceRecord(Message):
    """One GPU instance."""

    kind: Literal["instance"] = "instance"
    instance_id: InstanceId
    host_id: str = Field(description="equal for instances that share memory")
    role: InstanceRole = "any"
    state: Literal["ready", "draining"] = "ready"
    geometry: Geometry
    kv_addresses: list[str] = Field(description="KV port of each tensor-parallel rank")
    transports: list[Literal["shm", "tcp", "nccl"]]
    num_blocks: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    supported_tasks: list[str]
    device: str
    engine: Literal["vllm", "simulated"] = "vllm"
    started_s: float
    latency: LatencyCoefficients | None = None


class CoordinatorRecord(Message):
    """One replica of the KV-transfer service."""

    kind: Literal["coordinator"] = "coordinator"
    instance_id: InstanceId
    started_s: float


class SchedulerRecord(Message):
    """One replica of the global scheduler."""

    kind: Literal["scheduler"] = "scheduler"
    instance_id: InstanceId
    policy: str
    started_s: float


class GatewayRecord(Message):
    """One gateway."""

    kind: Literal["gateway"] = "gateway"
    instance_id: InstanceId
    url: str
    started_s: float


Record = Annotated[
    InstanceRecord | CoordinatorRecord | SchedulerRecord | GatewayRecord,
    Field(discriminator="kind"),
]
RECORD: TypeAdapter[Record] = TypeAdapter(Record)
