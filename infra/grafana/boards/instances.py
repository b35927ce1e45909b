"""What each instance does: batch composition, step time against the budget, KV."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from infra.grafana.panels import (
    POOL,
    Line,
    graph,
    new_board,
    quantile,
    rate,
    rows,
    share,
    signed_quantile,
)


def _by_part(metric: str) -> Line:
    return Line(f"sum by (part) ({metric}{{{POOL}}})", "{{part}}")


def board() -> Dashboard:
    in_time = f'{POOL}, le="1.0"'
    free, blocks = "dynaserve_instance_kv_blocks_free", "dynaserve_instance_kv_blocks"
    return (
        new_board("instances", "DynaServe: instances", __doc__ or "")
        .with_row(Row("Composition"))
        .with_panel(
            graph(
                "Decoding requests",
                "Requests of the batch that decode.",
                "short",
                _by_part("dynaserve_instance_decoding_requests"),
                span=8,
            )
        )
        .with_panel(
            graph(
                "Prompt tokens to compute",
                "Outstanding prefill work, running and waiting.",
                "short",
                _by_part("dynaserve_instance_prefill_tokens"),
                span=8,
            )
        )
        .with_panel(
            graph(
                "Waiting requests",
                "For a place in the batch, and for KV from another instance.",
                "short",
                Line(
                    f"sum by (part) (dynaserve_instance_waiting_requests{{{POOL}}})",
                    "{{part}} batch",
                ),
                Line(
                    f"sum by (part) (dynaserve_instance_waiting_for_kv_requests{{{POOL}}})",
                    "{{part}} KV",
                ),
                span=8,
            )
        )
        .with_row(Row("Steps"))
        .with_panel(
            graph(
                "Step time, P99",
                "Engine steps, and the tightest TBT objective of the pool.",
                "s",
                Line(quantile(0.99, "dynaserve_step_seconds", "part"), "{{part}}"),
                Line(
                    f'min(dynaserve_slo_objective_seconds{{{POOL}, objective="tbt"}})',
                    "TBT objective",
                    is_bound=True,
                ),
            )
        )
        .with_panel(
            share(
                "Steps longer than their TBT objective",
                "Of the steps that decoded for somebody.",
                Line(
                    f"1 - sum by (part) "
                    f"({rate('dynaserve_step_slo_ratio_bucket', in_time)}) "
                    f"/ sum by (part) ({rate('dynaserve_step_slo_ratio_count')})",
                    "{{part}}",
                ),
            )
        )
        .with_panel(
            graph(
                "Step time, real less predicted",
                "How far the latency model is off; the policy and the batcher rely on it.",
                "s",
                *signed_quantile(0.95, "dynaserve_step_prediction_error_seconds", "part"),
                signed=True,
            )
        )
        .with_panel(
            graph(
                "Budget of a step",
                "Tokens the batcher allowed, and the bound the engine was started with.",
                "short",
                _by_part("dynaserve_instance_batcher_budget_tokens"),
                Line(
                    f"max(dynaserve_instance_batcher_bound_tokens{{{POOL}}})",
                    "bound",
                    is_bound=True,
                ),
            )
        )
        .with_panel(
            graph(
                "Margin of a step",
                "The batcher plans steps for the TBT objective / (1 + this); the policy does too.",
                "percentunit",
                _by_part("dynaserve_instance_batcher_margin_ratio"),
            )
        )
        .with_panel(
            graph(
                "Tokens a second",
                "Output tokens each instance makes.",
                "short",
                Line(
                    f"sum by (part) ({rate('dynaserve_instance_generated_tokens_total')})",
                    "{{part}}",
                ),
            )
        )
        .with_panel(
            rows(
                "Batcher mode",
                "slo: budget from the objectives; static: vLLM's own behaviour.",
                "none",
                Line(f"dynaserve_instance_batcher_mode{{{POOL}}} == 1", "{{part}} {{mode}}"),
            )
        )
        .with_row(Row("KV and segments"))
        .with_panel(
            share(
                "KV in use",
                "Share of the KV blocks that somebody holds.",
                Line(
                    f"1 - sum by (part) ({free}{{{POOL}}}) / sum by (part) ({blocks}{{{POOL}}})",
                    "{{part}}",
                ),
                span=8,
            )
        )
        .with_panel(
            graph(
                "Preemptions a second",
                "Requests that lost their blocks to others and start again.",
                "short",
                Line(
                    f"sum by (part) ({rate('dynaserve_instance_preempted_requests_total')})",
                    "{{part}}",
                ),
                span=8,
            )
        )
        .with_panel(
            graph(
                "Segments a second by their end",
                "What ran here, by role.",
                "short",
                Line(
                    f"sum by (role, ended) ({rate('dynaserve_instance_segments_total')})",
                    "{{role}} {{ended}}",
                ),
                span=8,
            )
        )
        .with_panel(
            graph(
                "Cancel to free",
                "A cancel's arrival to its blocks being free; the objective is 100 ms.",
                "s",
                Line(quantile(0.5, "dynaserve_cancel_to_free_seconds"), "P50"),
                Line(quantile(0.99, "dynaserve_cancel_to_free_seconds"), "P99"),
            )
        )
        .with_panel(
            graph(
                "Orphaned KV blocks",
                "Blocks in use that nobody owns; must stay 0.",
                "short",
                Line(
                    f"sum by (part) (dynaserve_instance_kv_blocks_orphaned{{{POOL}}})", "{{part}}"
                ),
                Line(f"sum(dynaserve_kv_blocks_orphaned_total{{{POOL}}})", "leases unconfirmed"),
            )
        )
    )
