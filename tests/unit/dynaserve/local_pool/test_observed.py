"""Metrics and traces of a local pool."""

import itertools
import json
from pathlib import Path

from dynaserve.local_pool.hardware import Hardware
from dynaserve.local_pool.observed import observed, targets, write_targets
from dynaserve.local_pool.plan import Part, plan_parts
from dynaserve.local_pool.settings import PoolSettings, read_settings

CPU = Hardware(gpus=(), num_cores=2, memory_gib=24.0)


def parts(*flags: str) -> tuple[PoolSettings, dict[str, Part]]:
    settings = read_settings(flags)
    ports = itertools.count(9100)
    planned = plan_parts(settings, CPU, "nats://here:1", "/demo")
    return settings, {p.name: p for p in observed(planned, settings, lambda: next(ports))}


def test_every_part_but_the_gateway_gets_a_port_of_its_own() -> None:
    _, planned = parts("--port", "8123")
    for name, part in planned.items():
        assert ("--metrics-port" in part.arguments) == (name != "gateway-0")
    assert len({part.metrics_address for part in planned.values()}) == len(planned)
    assert planned["gateway-0"].metrics_address == "127.0.0.1:8123"


def test_targets_have_the_labels_that_boards_group_by(tmp_path: Path) -> None:
    settings, planned = parts("--pool", "p", "--log-folder", str(tmp_path))
    path = write_targets(targets(planned.values(), settings), settings)
    assert path == tmp_path / "targets" / "p.json"
    groups = json.loads(path.read_text())
    assert {group["labels"]["part"]: group["labels"]["service"] for group in groups} == {
        "kv-transfer-0": "kv_transfer",
        "scheduler-0": "global_sched",
        "instance-0": "gpu_instance",
        "instance-1": "gpu_instance",
        "gateway-0": "gateway",
    }
    assert {group["labels"]["pool"] for group in groups} == {"p"}


def test_traces_go_where_they_are_asked_for_and_the_gateway_decides_which() -> None:
    _, planned = parts("--otlp-endpoint", "http://c:4318", "--trace-sample-ratio", "0.1")
    for name, part in planned.items():
        assert "http://c:4318" in part.arguments
        assert ("--trace-sample-ratio" in part.arguments) == (name == "gateway-0")
    _, silent = parts()
    assert not any("--otlp-endpoint" in part.arguments for part in silent.values())


def test_simulated_engines_get_their_flags_and_the_gateway_those_of_the_model() -> None:
    _, planned = parts("--engine", "simulated", "--link-bytes-per-s", "1e9")
    instance, gateway = planned["instance-0"].arguments, planned["gateway-0"].arguments
    assert "simulated" in instance and "--link-bytes-per-s" in instance
    assert "--link-bytes-per-s" not in gateway and "--served-model-name=demo" in gateway
