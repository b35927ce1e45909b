"""Metrics and traces by OpenTelemetry: one meter, exposed for Prometheus when a port is given.

Instruments are made at import through the API's proxies, so a process that never calls
``expose_metrics`` pays next to nothing.
"""

from opentelemetry import metrics
from opentelemetry.metrics import Counter, Histogram, UpDownCounter

_meter = metrics.get_meter("dynaserve")


def counter(name: str, description: str, unit: str = "1") -> Counter:
    """A monotonic counter; Prometheus shows it with the suffix ``_total``."""
    return _meter.create_counter(name, unit=f"{{{unit}}}", description=description)


def up_down(name: str, description: str, unit: str = "1") -> UpDownCounter:
    """A value that goes up and down by increments."""
    return _meter.create_up_down_counter(name, unit=f"{{{unit}}}", description=description)


def histogram(name: str, description: str, buckets: list[float], unit: str = "s") -> Histogram:
    """A histogram with explicit bucket bounds."""
    return _meter.create_histogram(
        name,
        unit=unit,
        description=description,
        explicit_bucket_boundaries_advisory=buckets,
    )


def collect_metrics(service: str, instance_id: str) -> None:
    """Show this process's metrics in prometheus_client's default registry."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource

    reader = PrometheusMetricReader(scope_info_enabled=False)
    resource = Resource.create(
        {"service.name": f"dynaserve.{service}", "service.instance.id": instance_id}
    )
    metrics.set_meter_provider(MeterProvider(metric_readers=[reader], resource=resource))


def expose_metrics(service: str, instance_id: str, port: int, host: str = "127.0.0.1") -> int:
    """Serve this process's metrics at ``http://host:port/metrics``; 0 picks a port, returned."""
    from prometheus_client import start_http_server

    collect_metrics(service, instance_id)
    server, _thread = start_http_server(port, addr=host)
    return int(server.server_port)
