"""The few kinds of panel our boards are made of, in terms of PromQL."""

from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders.dashboard import Dashboard, ThresholdsConfig
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

METRICS = DataSourceRef(type_val="prometheus", uid="${datasource}")
POOL = 'pool=~"$pool"'
CLASS = f'{POOL}, slo_class=~"$slo_class"'
WINDOW = "[$__rate_interval]"
HEIGHT, HALF, THIRD, WHOLE = 8, 12, 8, 24


@dataclass(frozen=True)
class Line:
    """One query and what its series are called."""

    expr: str
    legend: str
    is_bound: bool = False
    """Drawn as a dashed red line: an objective or a bound."""


def new_board(uid: str, title: str, description: str, by_class: bool = False) -> Dashboard:
    """An empty board with the variables all of ours have."""
    board = (
        Dashboard(title)
        .uid(f"dynaserve-{uid}")
        .description(description)
        .tags(["dynaserve"])
        .refresh("10s")
        .time("now-30m", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboards.DatasourceVariable("datasource").label("Metrics").type("prometheus")
        )
        .with_variable(_names("pool", "Pool", "label_values(up, pool)"))
        .link(
            dashboards.DashboardLink("DynaServe boards")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["dynaserve"])
        )
    )
    if by_class:
        query = 'label_values(dynaserve_slo_requests_total{pool=~"$pool"}, slo_class)'
        board = board.with_variable(_names("slo_class", "SLO class", query))
    return board


def _names(name: str, label: str, query: str) -> dashboards.QueryVariable:
    return (
        dashboards.QueryVariable(name)
        .label(label)
        .datasource(METRICS)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def graph(
    title: str, description: str, unit: str, *lines: Line, span: int = HALF, signed: bool = False
) -> timeseries.Panel:
    """Values over time; the axis begins at 0 unless they are ``signed``."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(METRICS)
        .span(span)
        .height(HEIGHT)
        .fill_opacity(8)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if not signed:
        panel = panel.min(0)
    for index, line in enumerate(lines):
        ref_id = chr(ord("A") + index)
        panel = panel.with_target(_query(line, ref_id))
        if line.is_bound:
            panel = panel.override_by_query(ref_id, _BOUND_STYLE)
    return panel


_BOUND_STYLE = [
    DynamicConfigValue("color", {"mode": "fixed", "fixedColor": "red"}),
    DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
    DynamicConfigValue("custom.fillOpacity", 0),
]


def share(
    title: str, description: str, *lines: Line, objective: float | None = None, span: int = HALF
) -> timeseries.Panel:
    """Shares from 0 to 1 over time, with a line at the objective."""
    panel = graph(title, description, "percentunit", *lines, span=span).max(1)
    if objective is None:
        return panel
    return panel.thresholds(
        ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(None, "red"), Threshold(objective, "green")])
    ).thresholds_style(_threshold_line())


def _threshold_line() -> common.GraphThresholdsStyleConfig:
    return common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)


def number(
    title: str,
    description: str,
    unit: str,
    line: Line,
    good_from: float | None = None,
    bad_from: float | None = None,
    span: int = 4,
) -> stat.Panel:
    """One value now; green from ``good_from`` on, or red from ``bad_from`` on."""
    steps = [Threshold(None, "text")]
    if good_from is not None:
        steps = [Threshold(None, "red"), Threshold(good_from, "green")]
    elif bad_from is not None:
        steps = [Threshold(None, "green"), Threshold(bad_from, "red")]
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(METRICS)
        .span(span)
        .height(4)
        .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(_query(line, "A"))
    )


def rows(title: str, description: str, unit: str, line: Line, span: int = HALF) -> table.Panel:
    """The latest value of each series, one a row."""
    query = _query(line, "A").instant().format(PromQueryFormat.TABLE)
    return (
        table.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(METRICS)
        .span(span)
        .height(HEIGHT)
        .with_target(query)
    )


def _query(line: Line, ref_id: str) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(line.expr)
        .legend_format(line.legend)
        .ref_id(ref_id)
        .datasource(METRICS)
    )


def rate(metric: str, labels: str = POOL) -> str:
    return f"rate({metric}{{{labels}}}{WINDOW})"


def quantile(q: float, histogram: str, by: str = "", labels: str = POOL) -> str:
    """The q-quantile of a histogram, per ``by`` labels."""
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({groups}) ({rate(histogram + '_bucket', labels)}))"


def signed_quantile(q: float, histogram: str, by: str = "") -> tuple[Line, Line]:
    """The q-quantile of a signed histogram's positive values, and of its negative ones below 0."""
    name = f"{{{{{by}}}}} " if by else ""
    above = quantile(q, histogram, by, f'{POOL}, sign="positive"')
    below = quantile(q, histogram, by, f'{POOL}, sign="negative"')
    at = f"P{100 * q:.0f}"
    return Line(above, f"{name}{at} of those above"), Line(
        f"-{below}", f"{name}{at} of those below"
    )


def mean(histogram: str, by: str, labels: str = POOL) -> str:
    """Mean of what a histogram recorded, per ``by`` labels."""
    total, count = rate(f"{histogram}_sum", labels), rate(f"{histogram}_count", labels)
    return f"sum by ({by}) ({total}) / sum by ({by}) ({count})"
