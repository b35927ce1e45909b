"""Which processes a pool is made of."""

import pytest

from dynaserve.local_pool.hardware import Hardware
from dynaserve.local_pool.plan import Part, plan_parts
from dynaserve.local_pool.settings import read_settings
from services.global_sched.settings import read_settings as read_scheduler_settings
from shared.errors import InvalidRequest

CPU = Hardware(gpus=(), num_cores=2, memory_gib=24.0)
EIGHT_GPUS = Hardware(gpus=tuple("01234567"), num_cores=64, memory_gib=512.0)


def parts(hardware: Hardware, *flags: str) -> dict[str, Part]:
    planned = plan_parts(read_settings(flags), hardware, "nats://here:1", "/demo")
    return {part.name: part for part in planned}


def test_without_a_gpu_two_instances_of_the_demo_model_in_float32() -> None:
    planned = parts(CPU)
    assert list(planned) == [
        "kv-transfer-0",
        "scheduler-0",
        "instance-0",
        "instance-1",
        "gateway-0",
    ]
    assert planned["instance-0"].arguments[0] == "/demo"
    assert "--dtype=float32" in planned["instance-0"].arguments
    assert "--dtype=float32" in planned["gateway-0"].arguments


def test_gateways_and_instances_learn_the_objective() -> None:
    planned = parts(CPU, "--slo-tbt-ms", "25")
    for name in ("gateway-0", "instance-0", "instance-1"):
        arguments = planned[name].arguments
        assert arguments[arguments.index("--slo-tbt-ms") + 1] == "25.0"


def test_one_instance_a_gpu_each_seeing_its_own() -> None:
    planned = parts(EIGHT_GPUS, "some/model")
    visible = [planned[f"instance-{n}"].environment["CUDA_VISIBLE_DEVICES"] for n in range(8)]
    assert visible == list("01234567")
    assert "CUDA_VISIBLE_DEVICES" not in planned["gateway-0"].environment


@pytest.mark.parametrize(
    "flags", [("--tensor-parallel-size", "4"), ("--tensor-parallel-size=4",), ("-tp", "4")]
)
def test_a_tensor_parallel_group_gets_neighbouring_gpus(flags: tuple[str, ...]) -> None:
    planned = parts(EIGHT_GPUS, "some/model", *flags)
    assert "instance-2" not in planned
    assert planned["instance-1"].environment["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"


def test_more_instances_than_gpus_are_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidRequest, match="lower --instances"):
        parts(EIGHT_GPUS, "some/model", "--instances", "9")


def test_gateways_take_the_ports_behind_the_first() -> None:
    planned = parts(CPU, "--gateways", "3", "--port", "9000")
    ports = [
        planned[name].arguments[planned[name].arguments.index("--port") + 1]
        for name in ("gateway-0", "gateway-1", "gateway-2")
    ]
    assert ports == ["9000", "9001", "9002"]


def test_roles_go_to_instances_in_order() -> None:
    planned = parts(CPU, "--roles", "prefill,decode", "--policy", "disaggregated")
    assert "prefill" in planned["instance-0"].arguments
    assert "decode" in planned["instance-1"].arguments
    assert planned["scheduler-0"].arguments[-1] == "disaggregated"


def test_flags_of_vllm_reach_gateway_and_instances() -> None:
    planned = parts(CPU, "--max-num-seqs", "7")
    for name in ("instance-0", "instance-1", "gateway-0"):
        assert planned[name].arguments[-2:] == ("--max-num-seqs", "7")


def test_the_demo_gateway_reads_the_calls_of_tools_and_that_of_another_model_as_told() -> None:
    assert "--tool-call-parser=hermes" in parts(CPU)["gateway-0"].arguments
    assert "--tool-call-parser=hermes" not in parts(CPU)["instance-0"].arguments
    assert "--tool-call-parser=hermes" not in parts(CPU, "some/model")["gateway-0"].arguments


def test_admission_is_told_to_every_scheduler() -> None:
    flags = ("--schedulers", "2", "--admission", "queue", "--queue-classes", "a,b")
    planned = parts(CPU, *flags, "--max-queued", "7")
    for name in ("scheduler-0", "scheduler-1"):
        told = planned[name].arguments
        settings = read_scheduler_settings(told)
        assert (settings.admission, settings.max_queued) == ("queue", 7)
        assert settings.queueing == {"a": "queue", "b": "queue"}
