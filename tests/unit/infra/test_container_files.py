"""The files that containers mount agree with each other and with the code."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path("infra")


def load(path: str) -> Any:
    return yaml.safe_load((INFRA / path).read_text())


@pytest.fixture
def services() -> dict[str, Any]:
    found: dict[str, Any] = load("compose/compose.yml")["services"]
    return found


def test_every_file_that_is_mounted_exists(services: dict[str, Any]) -> None:
    for service in services.values():
        for volume in service["volumes"]:
            if volume.startswith("../"):
                assert (INFRA / "compose" / volume.split(":")[0]).exists(), volume


def test_every_variable_a_mounted_file_reads_is_set(services: dict[str, Any]) -> None:
    wanted = {
        "grafana": re.findall(
            r"\$([A-Z_]+)", (INFRA / "grafana/provisioning/datasources/dynaserve.yml").read_text()
        ),
        "otel-collector": re.findall(
            r"\$\{env:([A-Z_]+)", (INFRA / "otel/collector.yml").read_text()
        ),
    }
    for name, variables in wanted.items():
        assert variables and set(variables) <= set(services[name]["environment"]), name


def test_images_are_pinned(services: dict[str, Any]) -> None:
    for service in services.values():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), service["image"]


def test_data_sources_have_the_names_that_a_push_gives_them() -> None:
    sources = load("grafana/provisioning/datasources/dynaserve.yml")["datasources"]
    assert {(s["uid"], s["type"]) for s in sources} == {
        ("dynaserve-prometheus", "prometheus"),
        ("dynaserve-tempo", "tempo"),
    }


def test_traces_go_from_the_collector_to_where_tempo_listens(services: dict[str, Any]) -> None:
    listening = load("tempo/tempo.yml")["distributor"]["receivers"]["otlp"]["protocols"]["http"]
    port = listening["endpoint"].rpartition(":")[2]
    assert services["otel-collector"]["environment"]["TEMPO_OTLP"].endswith(f":{port}")


def test_every_processor_and_exporter_of_the_pipeline_is_set_up() -> None:
    collector = load("otel/collector.yml")
    for pipeline in collector["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= set(collector[kind])
