"""Decisions: where requests are cut and why, how good the predictions are, the guard, the bus."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from infra.grafana.panels import (
    POOL,
    Line,
    graph,
    new_board,
    quantile,
    rate,
    share,
    signed_quantile,
)


def board() -> Dashboard:
    met = f'{POOL}, slo="met"'
    kept_uncut = f'{POOL}, reason=~"guard|control_group|below_error|obstacle"'
    return (
        new_board("scheduler", "DynaServe: scheduler", __doc__ or "")
        .with_row(Row("Decisions"))
        .with_panel(
            graph(
                "Placements a second by cut",
                "none, inside the prompt, at its end, or behind it.",
                "short",
                Line(
                    f"sum by (region) ({rate('dynaserve_placements_by_cut_total')})", "{{region}}"
                ),
            )
        )
        .with_panel(
            graph(
                "Placements a second by reason",
                "Why a request was cut or not.",
                "short",
                Line(
                    f"sum by (reason) ({rate('dynaserve_placements_by_cut_total')})", "{{reason}}"
                ),
            )
        )
        .with_panel(
            graph(
                "Time of a decision",
                "P99 shall stay below 1 ms.",
                "s",
                Line(quantile(0.5, "dynaserve_placement_decision_seconds"), "P50"),
                Line(quantile(0.99, "dynaserve_placement_decision_seconds"), "P99"),
                Line("vector(0.001)", "objective", is_bound=True),
            )
        )
        .with_panel(
            graph(
                "Placements a second by policy",
                "Which policy decides.",
                "short",
                Line(
                    f"sum by (policy, kind) ({rate('dynaserve_placements_total')})",
                    "{{policy}} {{kind}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Refused and dropped a second",
                "Questions answered with no, and those nobody waited for any more.",
                "short",
                Line(f"sum by (code) ({rate('dynaserve_placements_refused_total')})", "{{code}}"),
                Line(
                    f"sum by (reason) ({rate('dynaserve_placements_dropped_total')})",
                    "dropped: {{reason}}",
                ),
                Line(f"sum({rate('dynaserve_admission_probes_total')})", "late, let in to learn"),
            )
        )
        .with_panel(
            graph(
                "Placements made anew",
                "By what went wrong with the one before.",
                "short",
                Line(f"sum by (code) ({rate('dynaserve_gateway_recoveries_total')})", "{{code}}"),
            )
        )
        .with_row(Row("Predictions"))
        .with_panel(
            graph(
                "Time to first token, real less predicted",
                "By where the request was cut. Above 0: later than predicted.",
                "s",
                *signed_quantile(0.9, "dynaserve_ttft_prediction_error_seconds", "region"),
                signed=True,
            )
        )
        .with_panel(
            graph(
                "Output length, real less predicted",
                "Tokens; above 0: longer than predicted.",
                "short",
                *signed_quantile(0.5, "dynaserve_output_length_error_tokens"),
                *signed_quantile(0.9, "dynaserve_output_length_error_tokens"),
                signed=True,
            )
        )
        .with_panel(
            graph(
                "Time to first token, real over predicted",
                "Lately; admission goes by it. 1: as predicted.",
                "none",
                Line(
                    f"max by (quantile) (dynaserve_ttft_real_to_predicted_ratio{{{POOL}}})",
                    "quantile {{quantile}}",
                ),
                Line("vector(1)", "as predicted", is_bound=True),
            )
        )
        .with_panel(
            share(
                "Requests longer than their predicted P90",
                "Lately, by class; 10 % when predictions are right.",
                Line(
                    f"max by (slo_class) (dynaserve_output_length_over_p90_ratio{{{POOL}}})",
                    "{{slo_class}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Placed and not yet in telemetry",
                "What a scheduler has to remember itself.",
                "short",
                Line(f"sum by (part) (dynaserve_shadow_placements{{{POOL}}})", "{{part}}"),
                Line(
                    f"sum({rate('dynaserve_shadow_lost_placements_total')})", "never seen, a second"
                ),
            )
        )
        .with_panel(
            graph(
                "Load believed less load reported",
                "Prompt tokens on an instance; near 0 when bookkeeping is right.",
                "short",
                *signed_quantile(0.95, "dynaserve_shadow_load_error_tokens"),
                signed=True,
            )
        )
        .with_row(Row("Guard"))
        .with_panel(
            share(
                "Classes whose cuts are off",
                "1: cut requests fared worse than the control group, so none is cut for a while.",
                Line(f"max by (slo_class) (dynaserve_guard_off_ratio{{{POOL}}})", "{{slo_class}}"),
            )
        )
        .with_panel(
            graph(
                "How classes fare, cut and not",
                "The guard's scores: a missed SLO counts 1, the rest is time used; 0 is best.",
                "none",
                Line(
                    f"max by (slo_class, group) (dynaserve_guard_score_ratio{{{POOL}}})",
                    "{{slo_class}} {{group}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Requests the scores are made from",
                "Cuts are judged from 30 of each group on.",
                "short",
                Line(
                    f"max by (slo_class, group) (dynaserve_guard_requests{{{POOL}}})",
                    "{{slo_class}} {{group}}",
                ),
            )
        )
        .with_panel(
            share(
                "SLOs met by group",
                "control: kept uncut to compare with; cut and uncut: what the policy chose.",
                Line(
                    "sum by (group) "
                    f"({rate('dynaserve_control_requests_total', met)}) "
                    f"/ sum by (group) ({rate('dynaserve_control_requests_total')})",
                    "{{group}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Cuts the guard or the control group kept from happening",
                "Placements a second.",
                "short",
                Line(
                    f"sum by (reason) ({rate('dynaserve_placements_by_cut_total', kept_uncut)})",
                    "{{reason}}",
                ),
            )
        )
        .with_row(Row("Bus and queues"))
        .with_panel(
            graph(
                "Bus lag, P99",
                "Publishing to handling, by stream.",
                "s",
                Line(quantile(0.99, "dynaserve_bus_lag_seconds", "stream"), "{{stream}}"),
                Line(
                    f"max by (stream) (dynaserve_bus_lag_worst_seconds{{{POOL}}})",
                    "{{stream}} worst",
                ),
            )
        )
        .with_panel(
            graph(
                "Lost, unreadable, late",
                "Trouble on the bus, events a second.",
                "short",
                Line(f"sum({rate('dynaserve_bus_slow_consumers_total')})", "slow consumer"),
                Line(f"sum({rate('dynaserve_bus_errors_total')})", "errors"),
                Line(f"sum({rate('dynaserve_bus_reconnects_total')})", "reconnects"),
                Line(f"sum({rate('dynaserve_bus_messages_dropped_total')})", "unreadable"),
                Line(f"sum({rate('dynaserve_instance_messages_lost_total')})", "not sent"),
                Line(f"sum({rate('dynaserve_handler_errors_total')})", "handlers failed"),
                Line(f"sum({rate('dynaserve_gateway_deltas_refused_total')})", "tokens refused"),
            )
        )
        .with_panel(
            share(
                "Queues, depth over bound",
                "What waits, by queue; 1 refuses or drops.",
                Line(
                    f"max by (queue) (dynaserve_queue_depth_items{{{POOL}}} "
                    f"/ dynaserve_queue_bound_items{{{POOL}}})",
                    "{{queue}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Instances",
                "As the registry has them, and those that left.",
                "short",
                Line(f"max by (state) (dynaserve_pool_instances{{{POOL}}})", "{{state}}"),
                Line(f"sum by (how) (dynaserve_instances_lost_total{{{POOL}}})", "{{how}}"),
            )
        )
    )
