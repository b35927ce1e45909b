"""Is the SLO held, for whom is it not, and how much useful work is done."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from infra.grafana.panels import (
    CLASS,
    POOL,
    Line,
    graph,
    new_board,
    number,
    quantile,
    rate,
    share,
)

OBJECTIVE = 0.99
"""Share of requests that shall meet both objectives; the alert rules have the same number."""


def _attainment(objective: str, by: str) -> str:
    labels = f'{CLASS}, objective="{objective}"'
    good = rate("dynaserve_slo_good_requests_total", labels)
    total = rate("dynaserve_slo_requests_total", labels)
    return f"sum by ({by}) ({good}) / sum by ({by}) ({total})"


def _objective(name: str) -> Line:
    labels = f'{CLASS}, objective="{name}"'
    expr = f"max by (slo_class) (dynaserve_slo_objective_seconds{{{labels}}})"
    return Line(expr, "{{slo_class}} objective", is_bound=True)


def board() -> Dashboard:
    return (
        new_board("fleet", "DynaServe: fleet SLO", __doc__ or "", by_class=True)
        .with_row(Row("Now"))
        .with_panel(
            number(
                "Both SLOs met",
                "Share of the requests over whose TTFT and P99 TBT were in time.",
                "percentunit",
                Line(_attainment("both", "pool"), "{{pool}}"),
                good_from=OBJECTIVE,
            )
        )
        .with_panel(
            number(
                "Budget burnt, 1 h",
                "1 burns the error budget exactly; 14 burns that of a month in two days.",
                "none",
                Line(
                    f"max by (slo_class) (dynaserve:slo_burn:ratio_rate1h{{{CLASS}}})",
                    "{{slo_class}}",
                ),
                bad_from=1.0,
            )
        )
        .with_panel(
            number(
                "Goodput",
                "Output tokens a second of requests that met both SLOs.",
                "short",
                Line(f"sum({rate('dynaserve_goodput_tokens_total', CLASS)})", "tokens/s"),
            )
        )
        .with_panel(
            number(
                "In flight",
                "Requests that are not over.",
                "short",
                Line(f"sum(dynaserve_gateway_requests_in_flight{{{POOL}}})", "requests"),
            )
        )
        .with_panel(
            number(
                "Instances",
                "Instances the schedulers can use.",
                "short",
                Line(f'max(dynaserve_pool_instances{{{POOL}, state="ready"}})', "ready"),
            )
        )
        .with_panel(
            number(
                "Parts down",
                "Parts of the pool that Prometheus cannot reach.",
                "short",
                Line(f"count(up{{{POOL}}}) - sum(up{{{POOL}}})", "down"),
                bad_from=1.0,
            )
        )
        .with_row(Row("Objectives by class"))
        .with_panel(
            share(
                "Time to first token met",
                "Share of the requests whose first token was in time.",
                Line(_attainment("ttft", "slo_class"), "{{slo_class}}"),
                objective=OBJECTIVE,
                span=8,
            )
        )
        .with_panel(
            share(
                "Gaps between tokens met",
                "Share of the requests whose P99 gap was in time.",
                Line(_attainment("tbt", "slo_class"), "{{slo_class}}"),
                objective=OBJECTIVE,
                span=8,
            )
        )
        .with_panel(
            share(
                "Both met",
                "Share of the requests that count as goodput.",
                Line(_attainment("both", "slo_class"), "{{slo_class}}"),
                objective=OBJECTIVE,
                span=8,
            )
        )
        .with_row(Row("Latency against its SLO"))
        .with_panel(
            graph(
                "Time to first token",
                "P50 and P99, with the objective each class last asked for.",
                "s",
                Line(
                    quantile(0.5, "gen_ai_server_time_to_first_token_seconds", "slo_class", CLASS),
                    "{{slo_class}} P50",
                ),
                Line(
                    quantile(0.99, "gen_ai_server_time_to_first_token_seconds", "slo_class", CLASS),
                    "{{slo_class}} P99",
                ),
                _objective("ttft"),
            )
        )
        .with_panel(
            graph(
                "P99 gap between tokens",
                "Of each request its P99 gap; P50 and P99 over requests, with the objective.",
                "s",
                Line(
                    quantile(0.5, "dynaserve_tbt_p99_seconds", "slo_class", CLASS),
                    "{{slo_class}} P50",
                ),
                Line(
                    quantile(0.99, "dynaserve_tbt_p99_seconds", "slo_class", CLASS),
                    "{{slo_class}} P99",
                ),
                _objective("tbt"),
            )
        )
        .with_panel(
            graph(
                "Time per output token",
                "Mean gap of each request; P50 and P99 over requests.",
                "s",
                Line(
                    quantile(0.5, "gen_ai_server_time_per_output_token_seconds", "", CLASS), "P50"
                ),
                Line(
                    quantile(0.99, "gen_ai_server_time_per_output_token_seconds", "", CLASS), "P99"
                ),
            )
        )
        .with_panel(
            graph(
                "Whole request",
                "Arrival to last token.",
                "s",
                Line(quantile(0.5, "gen_ai_server_request_duration_seconds", "", CLASS), "P50"),
                Line(quantile(0.99, "gen_ai_server_request_duration_seconds", "", CLASS), "P99"),
            )
        )
        .with_row(Row("Work and refusals"))
        .with_panel(
            graph(
                "Tokens a second",
                "All output tokens, and those of requests that met both SLOs.",
                "short",
                Line(f"sum({rate('dynaserve_output_tokens_total', CLASS)})", "output"),
                Line(f"sum({rate('dynaserve_goodput_tokens_total', CLASS)})", "goodput"),
                Line(f"sum({rate('dynaserve_prompt_tokens_total', CLASS)})", "prompt"),
            )
        )
        .with_panel(
            graph(
                "Requests a second by outcome",
                "How requests ended.",
                "reqps",
                Line(
                    f"sum by (outcome) ({rate('dynaserve_gateway_requests_total')})", "{{outcome}}"
                ),
            )
        )
        .with_panel(
            graph(
                "Refusals a second",
                "Requests turned away at once, by reason.",
                "reqps",
                Line(f"sum by (reason) ({rate('dynaserve_refused_requests_total')})", "{{reason}}"),
            )
        )
        .with_panel(
            graph(
                "Wait told to the refused",
                "Retry-After as predicted.",
                "s",
                Line(quantile(0.5, "dynaserve_refused_wait_seconds"), "P50"),
                Line(quantile(0.99, "dynaserve_refused_wait_seconds"), "P99"),
            )
        )
    )
