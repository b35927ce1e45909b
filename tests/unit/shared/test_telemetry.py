"""Instruments: sums without cost, values read on demand, names with units, bounded labels."""

import pytest
from opentelemetry.metrics import CallbackOptions
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader

from shared.bus_metrics import LagMeter
from shared.telemetry import (
    BoundedNames,
    Gauge,
    SignedHistogram,
    Tally,
    counter,
    gauge,
    histogram,
    up_down,
)

NOW = CallbackOptions()


def values(instrument: Tally | Gauge) -> dict[tuple[tuple[str, str], ...], float]:
    shown: dict[tuple[tuple[str, str], ...], float] = {}
    for each in instrument.observe(NOW):
        labels = {name: str(value) for name, value in (each.attributes or {}).items()}
        shown[tuple(labels.items())] = each.value
    return shown


def test_a_tally_keeps_a_sum_per_labels_and_shows_zeros() -> None:
    tally = Tally()
    tally.add(0)
    tally.add(2, {"side": "alpha"})
    tally.add(3, {"side": "alpha"})
    assert values(tally) == {(): 0, (("side", "alpha"),): 5}


def test_a_signed_histogram_keeps_errors_of_either_sign(caplog: pytest.LogCaptureFixture) -> None:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    errors = SignedHistogram(meter.create_histogram("error"))
    errors.record(-2.0, {"part": "a"})
    errors.record(-1.0, {"part": "a"})
    errors.record(0.5, {"part": "a"})
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    found = {
        (point.attributes["part"], point.attributes["sign"]): (point.count, point.sum)
        for point in metric.data.data_points
        if isinstance(point, HistogramDataPoint) and point.attributes
    }
    assert found == {("a", "negative"): (2, 3.0), ("a", "positive"): (1, 0.5)}
    assert not caplog.records


def test_a_gauge_shows_what_is_watched_until_it_is_let_go() -> None:
    shown = Gauge()
    depth = 3.0
    forget = shown.watch(lambda: depth, {"queue": "q"})
    shown.watch(lambda: None)
    assert values(shown) == {(("queue", "q"),): 3.0}
    depth = 4.0
    assert values(shown) == {(("queue", "q"),): 4.0}
    forget()
    assert values(shown) == {}


@pytest.mark.parametrize(
    ("make", "name", "unit"),
    [
        (counter, "dynaserve_test_things", "request"),
        (up_down, "dynaserve_test_open", "handoff"),
        (gauge, "dynaserve_test_share", "1"),
        (gauge, "dynaserve_test_time", "s"),
    ],
)
def test_a_name_without_its_unit_is_refused(make: object, name: str, unit: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="does not say its unit"):
        make(name, "text", unit)


def test_a_histogram_without_its_unit_is_refused_but_for_the_conventions() -> None:
    with pytest.raises(ValueError, match="does not say its unit"):
        histogram("dynaserve_test_wait", "text", [1.0])
    histogram("gen_ai.server.test", "text", [1.0])


def test_names_beyond_the_bound_become_other() -> None:
    name = BoundedNames(2)
    assert [name("a"), name("b"), name("c"), name("a")] == ["a", "b", "other", "a"]


def test_the_worst_lag_is_that_since_the_last_look_and_never_negative() -> None:
    meter = LagMeter("test")
    meter.observe(0.2)
    meter.observe(0.5)
    meter.observe(0.1)
    assert meter._take_worst() == 0.5
    assert meter._take_worst() is None
    meter.observe(-0.3)
    assert meter._take_worst() == 0.0
    meter.forget()
