"""Metrics by OpenTelemetry: one meter, exposed for Prometheus when a port is given.

Instruments are made at import and cost next to nothing until ``collect_metrics`` is called. Names
say their unit, counters count a noun, and label values come from closed sets; what clients choose
goes through ``BoundedNames``. Traces are in ``shared.tracing``.
"""

import threading
from collections.abc import Callable, Iterable, Mapping

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, Observation

Attributes = Mapping[str, str]

_meter = metrics.get_meter("dynaserve")
_WORDS = {"s": "second", "By": "byte", "By/s": "byte"}
OTHER = "other"
MAX_NAMES = 32


class Tally:
    """Sums by label values, kept here and read by the SDK at a scrape.

    ``add`` costs 0.4 us, a synchronous SDK counter 6 us: these stand in the paths of tokens.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[tuple[str, str], ...], float] = {}
        self._lock = threading.Lock()

    def add(self, amount: float, attributes: Attributes | None = None) -> None:
        """Add; 0 shows the series, so that its first increase is seen as one."""
        key = tuple(attributes.items()) if attributes else ()
        with self._lock:
            self._sums[key] = self._sums.get(key, 0) + amount

    def observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            sums = list(self._sums.items())
        return [Observation(value, dict(key)) for key, value in sums]


class Gauge:
    """Values that are read when somebody looks; each ``watch`` adds one."""

    def __init__(self) -> None:
        self._readers: dict[object, tuple[Callable[[], float | None], dict[str, str]]] = {}

    def watch(
        self, read: Callable[[], float | None], attributes: Attributes | None = None
    ) -> Callable[[], None]:
        """Show what ``read`` gives (None: nothing now) until the returned function is called.

        ``read`` runs on the thread that serves the metrics: it must not wait or change anything.
        """
        key = object()
        self._readers[key] = (read, dict(attributes or {}))
        return lambda: self._readers.pop(key, None) and None

    def observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        for read, attributes in list(self._readers.values()):
            value = read()
            if value is not None:
                yield Observation(value, attributes)


class SignedHistogram:
    """Errors of either sign. The SDK's histograms drop what is negative, with a warning each time:
    the size is recorded, and the label ``sign`` (positive, negative) says which way it was."""

    def __init__(self, sizes: Histogram) -> None:
        self._sizes = sizes

    def record(self, value: float, attributes: Attributes | None = None) -> None:
        sign = "negative" if value < 0.0 else "positive"
        self._sizes.record(abs(value), {**(attributes or {}), "sign": sign})


class BoundedNames:
    """The first ``most`` names that are asked for keep their own; the rest are ``other``."""

    def __init__(self, most: int = MAX_NAMES) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(name)
        return name


def counter(name: str, description: str, unit: str) -> Tally:
    """A monotonic counter; Prometheus shows it with the suffix ``_total``."""
    tally = Tally()
    _meter.create_observable_counter(
        _checked(name, unit), [tally.observe], unit=_annotated(unit), description=description
    )
    return tally


def up_down(name: str, description: str, unit: str) -> Tally:
    """A value that goes up and down by increments."""
    tally = Tally()
    _meter.create_observable_up_down_counter(
        _checked(name, unit), [tally.observe], unit=_annotated(unit), description=description
    )
    return tally


def gauge(name: str, description: str, unit: str) -> Gauge:
    """A value that is read at each scrape."""
    read = Gauge()
    _meter.create_observable_gauge(
        _checked(name, unit), [read.observe], unit=_annotated(unit), description=description
    )
    return read


def watched_counter(name: str, description: str, unit: str) -> Gauge:
    """A monotonic counter that somebody else keeps; read at each scrape."""
    read = Gauge()
    _meter.create_observable_counter(
        _checked(name, unit), [read.observe], unit=_annotated(unit), description=description
    )
    return read


def histogram(name: str, description: str, buckets: list[float], unit: str = "s") -> Histogram:
    """A histogram with explicit bucket bounds; recording costs 4 to 8 us."""
    return _meter.create_histogram(
        name if name.startswith("gen_ai.") else _checked(name, unit),
        unit=_annotated(unit),
        description=description,
        explicit_bucket_boundaries_advisory=buckets,
    )


def signed_histogram(
    name: str, description: str, buckets: list[float], unit: str = "s"
) -> SignedHistogram:
    """A histogram of values of either sign; ``buckets`` are bounds of their size."""
    return SignedHistogram(histogram(name, f"{description}: size, by sign", buckets, unit))


def _annotated(unit: str) -> str:
    """UCUM: nouns that are counted stand in braces."""
    return unit if unit in _WORDS or unit == "1" else f"{{{unit}}}"


def _checked(name: str, unit: str) -> str:
    """``name``, which has to say its unit ("ratio" for a unit of "1")."""
    word = _WORDS.get(unit, "ratio" if unit == "1" else unit)
    if not any(part.startswith(word.rstrip("y")) for part in name.split("_")):
        raise ValueError(f"the metric {name} does not say its unit {unit}")
    return name


def collect_metrics(service: str, instance_id: str) -> None:
    """Show this process's metrics in prometheus_client's default registry."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
    from opentelemetry.sdk.resources import Resource

    reader = PrometheusMetricReader(scope_info_enabled=False)
    resource = Resource.create(
        {"service.name": f"dynaserve.{service}", "service.instance.id": instance_id}
    )
    provider = MeterProvider(
        metric_readers=[reader],
        resource=resource,
        exemplar_filter=AlwaysOffExemplarFilter(),  # Prometheus' text format shows none
    )
    metrics.set_meter_provider(provider)


def expose_metrics(service: str, instance_id: str, port: int, host: str = "127.0.0.1") -> int:
    """Serve this process's metrics at ``http://host:port/metrics``; 0 picks a port, returned."""
    from prometheus_client import start_http_server

    collect_metrics(service, instance_id)
    server, _thread = start_http_server(port, addr=host)
    return int(server.server_port)
