"""Why requests are slow: where the time to the first token goes, and the traces of single ones."""

from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import table, tempo, text
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from grafana_foundation_sdk.models.tempo import SearchTableType
from grafana_foundation_sdk.models.text import TextMode

from infra.grafana.panels import POOL, WHOLE, Line, graph, mean, new_board, quantile, rate

TRACES = DataSourceRef(type_val="tempo", uid="${traces}")
PHASES = """\
**Phases of the time to first token**: *place* (question to the scheduler), *queue* (in the engine
of the first instance), *first* (alpha's or the only prompt computation), *handoff* (KV and tokens
on their way to beta), *second* (beta's part of the prompt), *other* (bus and gateway).
A single request: its id is in the `x-request-id` header of the answer. Put it into **Request id**
above, click the trace found, and read the waterfall; `dynaserve explain ID` tells the same in a
terminal, with the plan and what else was weighed. Traces are there when the pool runs with
`--otlp-endpoint`."""


def _mean_by_phase() -> str:
    """Every request has the phase 'place': its count is that of requests."""
    every_request = f'{POOL}, phase="place"'
    spent = rate("dynaserve_ttft_phase_seconds_sum")
    requests = rate("dynaserve_ttft_phase_seconds_count", every_request)
    return f"sum by (phase) ({spent}) / on () group_left () sum({requests})"


def board() -> Dashboard:
    return (
        new_board("requests", "DynaServe: a request's waterfall", __doc__ or "")
        .with_variable(dashboards.DatasourceVariable("traces").label("Traces").type("tempo"))
        .with_variable(
            dashboards.TextBoxVariable("request_id").label("Request id").default_value(".*")
        )
        .with_panel(text.Panel().mode(TextMode.MARKDOWN).content(PHASES).span(WHOLE).height(5))
        .with_row(Row("Where the time goes"))
        .with_panel(
            graph(
                "Time to first token by phase, mean",
                "Stacked, it is the mean time to first token.",
                "s",
                Line(_mean_by_phase(), "{{phase}}"),
            )
        )
        .with_panel(
            graph(
                "Time to first token by phase, P99",
                "Each phase by itself.",
                "s",
                Line(quantile(0.99, "dynaserve_ttft_phase_seconds", "phase"), "{{phase}}"),
            )
        )
        .with_panel(
            graph(
                "Wait for a placement",
                "Question at the gateway to plan.",
                "s",
                Line(quantile(0.5, "dynaserve_gateway_place_seconds"), "P50"),
                Line(quantile(0.99, "dynaserve_gateway_place_seconds"), "P99"),
            )
        )
        .with_panel(
            graph(
                "Handoff seen by requests, mean",
                "The exposed part is waited for; the hidden part went while alpha computed.",
                "s",
                Line(mean("dynaserve_handoff_exposed_seconds", "pool"), "exposed"),
                Line(mean("dynaserve_handoff_hidden_seconds", "pool"), "hidden"),
            )
        )
        .with_row(Row("Single requests"))
        .with_panel(
            table.Panel()
            .title("Traces")
            .description("The newest traced requests of that id; a click opens the waterfall.")
            .datasource(TRACES)
            .span(WHOLE)
            .height(12)
            .with_target(
                tempo.Dataquery()
                .query_type("traceql")
                .query(
                    '{ name = "request" && span.dynaserve.http_request_id =~ "$request_id" } '
                    "| select(span.dynaserve.ttft_s, span.dynaserve.tbt_p99_s, "
                    "span.dynaserve.slo_met, span.dynaserve.slo_class, span.dynaserve.cut, "
                    "span.dynaserve.outcome)"
                )
                .table_type(SearchTableType.SPANS)
                .limit(50)
                .ref_id("A")
                .datasource(TRACES)
            )
        )
    )
