"""Every service takes the same flags and variables."""

import pytest
from pydantic import ValidationError

from services.gateway.settings import GatewaySettings
from services.global_sched.settings import SchedulerSettings
from services.gpu_instance.settings import InstanceSettings
from services.kv_transfer.settings import KvTransferSettings
from shared.settings import BusSettings

SERVICES: dict[str, type[BusSettings]] = {
    "GATEWAY": GatewaySettings,
    "SCHEDULER": SchedulerSettings,
    "INSTANCE": InstanceSettings,
    "KV_TRANSFER": KvTransferSettings,
}


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def read(service: str, *flags: str) -> BusSettings:
    return SERVICES[service](_cli_parse_args=list(flags))


def test_flags_win_over_variables_and_variables_over_defaults(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"DYNASERVE_{service}_NATS", "nats://variable:1")
    monkeypatch.setenv(f"DYNASERVE_{service}_POOL", "variable")
    settings = read(service, "--pool", "flag", "--log-level", "DEBUG")
    assert (settings.nats, settings.pool) == ("nats://variable:1", "flag")
    assert settings.log_level == "DEBUG"
    assert read(service).otlp_endpoint is None


def test_traces_go_where_open_telemetry_says(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert read(service).otlp_endpoint == "http://collector:4318"


def test_a_pool_name_that_is_no_part_of_a_subject_is_refused(service: str) -> None:
    with pytest.raises(ValidationError, match="pool"):
        read(service, "--pool", "a.b")
