"""The doctor on a pool: who is registered, and whether any two instances can hand KV over."""

import contextlib
import json
from collections.abc import AsyncIterator

import nats
import pytest
from nats.js.api import KeyValueConfig

from dynaserve.doctor.bus import read_bus
from dynaserve.doctor.finding import Finding
from dynaserve.doctor.pool import judge_pool, read_records
from infra.nats import EmbeddedNats
from infra.nats.config import NatsConfig
from shared.schemas.registry import (
    CoordinatorRecord,
    GatewayRecord,
    Geometry,
    InstanceRecord,
    Record,
    SchedulerRecord,
)
from shared.subjects import Subjects

GEOMETRY = Geometry(
    model="demo",
    model_hash="abc",
    dtype="float32",
    kv_dtype="float32",
    block_size=128,
    num_layers=4,
    block_bytes=131072,
    kv_layout="LBHNC",
    tensor_parallel_size=1,
    vllm_version="0.32.0",
)


def instance(name: str, **changes: object) -> InstanceRecord:
    return InstanceRecord(
        instance_id=name,
        host_id="host",
        geometry=GEOMETRY.model_copy(update=changes),
        kv_addresses=["127.0.0.1:1"],
        transports=["shm"],
        num_blocks=100,
        max_model_len=4096,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        supported_tasks=["generate"],
        device="cpu",
        started_s=0.0,
    )


SERVICES: list[Record] = [
    GatewayRecord(instance_id="g", url="http://127.0.0.1:8000", started_s=0.0),
    SchedulerRecord(instance_id="s", policy="dynaserve", started_s=0.0),
    CoordinatorRecord(instance_id="c", started_s=0.0),
]


def judge(*records: Record) -> dict[str, Finding]:
    return {finding.name: finding for finding in judge_pool(records, [])}


def test_a_whole_pool_is_fine() -> None:
    found = judge(*SERVICES, instance("one"), instance("two"))

    assert {finding.status for finding in found.values()} == {"ok"}
    assert found.keys() == {"gateway", "scheduler", "kv-transfer", "instances", "geometry"}


def test_nobody_registered_is_no_fault() -> None:
    assert [finding.status for finding in judge_pool([], [])] == ["ok"]


@pytest.mark.parametrize(
    ("missing", "name"), [(0, "gateway"), (1, "scheduler"), (2, "kv-transfer")]
)
def test_a_service_that_is_missing_is_named_with_its_command(missing: int, name: str) -> None:
    left = SERVICES[:missing] + SERVICES[missing + 1 :]

    found = judge(*left, instance("one"), instance("two"))[name]

    assert found.status == "fail"
    assert found.mend is not None and f"dynaserve {name}" in found.mend


def test_one_instance_serves_but_cannot_cut() -> None:
    assert judge(*SERVICES, instance("one"))["instances"].status == "warn"


def test_instances_that_all_drain_serve_nobody() -> None:
    draining = instance("one").model_copy(update={"state": "draining"})

    assert judge(*SERVICES, draining)["instances"].status == "fail"


def test_an_instance_of_another_vllm_is_named_with_both_versions() -> None:
    odd = instance("odd", vllm_version="0.31.0")

    found = judge(*SERVICES, instance("one"), odd, instance("two"))["geometry"]

    assert found.status == "fail"
    assert found.detail == "odd differs: vllm_version '0.31.0', elsewhere '0.32.0'"
    assert found.mend is not None and "scripts/setup" in found.mend


def test_an_instance_of_another_block_size_is_told_to_use_the_flags_of_the_others() -> None:
    odd = instance("odd", block_size=64, block_bytes=65536)

    found = judge(*SERVICES, odd, instance("one"), instance("two"))["geometry"]

    assert found.detail == "odd differs: block_size 64, elsewhere 128; block_bytes 65536, " + (
        "elsewhere 131072"
    )
    assert found.mend is not None and "flags" in found.mend


def test_instances_of_different_models_need_not_be_alike() -> None:
    found = judge(*SERVICES, instance("one"), instance("two", model="other", block_size=64))

    assert found["geometry"].status == "ok"


def test_a_record_of_another_release_is_a_fault() -> None:
    old = json.loads(instance("old").model_dump_json()) | {"v": 2}

    records, unreadable = read_records([("instance.old", json.dumps(old).encode())])
    findings = judge_pool(records, unreadable)

    assert (findings[0].name, findings[0].status) == ("registry", "fail")
    assert "instance.old" in findings[0].detail


@contextlib.asynccontextmanager
async def bucket_with(url: str, pool: str, record: Record) -> AsyncIterator[None]:
    client = await nats.connect(url)
    bucket = Subjects(pool).registry_bucket
    entries = await client.jetstream().create_key_value(KeyValueConfig(bucket=bucket))
    await entries.put("instance.one", record.model_dump_json().encode())
    yield
    await client.jetstream().delete_key_value(bucket)
    await client.close()


async def test_the_registry_is_read_from_the_server(nats_url: str, pool: str) -> None:
    async with bucket_with(nats_url, pool, instance("one")):
        report = await read_bus(nats_url, pool)

    assert report.jetstream_error is None
    assert read_records(report.records) == ([instance("one")], [])


async def test_a_pool_that_never_was_has_no_records(nats_server: EmbeddedNats, pool: str) -> None:
    report = await read_bus(nats_server.url, pool)

    assert (report.error, report.jetstream_error, report.records) == (None, None, ())


async def test_an_empty_bucket_has_no_records(nats_url: str, pool: str) -> None:
    async with bucket_with(nats_url, pool, instance("one")):
        client = await nats.connect(nats_url)
        entries = await client.jetstream().key_value(Subjects(pool).registry_bucket)
        await entries.delete("instance.one")
        await client.close()
        report = await read_bus(nats_url, pool)

    assert report.records == ()
    assert report.jetstream_error is None


async def test_a_server_without_jetstream_is_told_apart_from_one_that_is_away(
    monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    whole = NatsConfig.to_json

    def without_jetstream(config: NatsConfig) -> str:
        return json.dumps({k: v for k, v in json.loads(whole(config)).items() if k != "jetstream"})

    monkeypatch.setattr(NatsConfig, "to_json", without_jetstream)
    async with EmbeddedNats() as server:
        report = await read_bus(server.url, pool)

    assert report.error is None
    assert report.jetstream_error is not None
