"""KV handoffs and links: outcomes, what moved, what anybody waited for, leases."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from infra.grafana.panels import POOL, Line, graph, new_board, number, quantile, rate, share


def board() -> Dashboard:
    exposed = rate("dynaserve_handoff_exposed_seconds_sum")
    hidden = rate("dynaserve_handoff_hidden_seconds_sum")
    return (
        new_board("transfers", "DynaServe: transfers and links", __doc__ or "")
        .with_row(Row("Now"))
        .with_panel(
            number(
                "Open handoffs",
                "Handoffs under way.",
                "short",
                Line(f"sum(dynaserve_handoffs_open{{{POOL}}})", "open"),
                span=6,
            )
        )
        .with_panel(
            number(
                "Blocks orphaned",
                "Blocks nobody confirmed as freed; must stay 0.",
                "short",
                Line(f"sum(dynaserve_kv_blocks_orphaned_total{{{POOL}}})", "blocks"),
                bad_from=1.0,
                span=6,
            )
        )
        .with_panel(
            number(
                "Leases expired",
                "Leases that ran out before their side said that it is done.",
                "short",
                Line(f"sum(dynaserve_leases_expired_total{{{POOL}}})", "leases"),
                bad_from=1.0,
                span=6,
            )
        )
        .with_panel(
            number(
                "Events that fit no handoff",
                "Late or repeated news; a few are normal, a stream of them is not.",
                "short",
                Line(f"sum({rate('dynaserve_handoff_events_ignored_total')})", "a second"),
                span=6,
            )
        )
        .with_row(Row("Handoffs"))
        .with_panel(
            graph(
                "Handoffs a second by outcome",
                "adopted is what is hoped for; recomputed and failed cost time.",
                "short",
                Line(f"sum by (outcome) ({rate('dynaserve_handoffs_total')})", "{{outcome}}"),
            )
        )
        .with_panel(
            graph(
                "Open handoffs by state",
                "opened, streaming, ready, adopted; failed ones wait for both sides to let go.",
                "short",
                Line(f"sum by (state) (dynaserve_handoffs_in_state{{{POOL}}})", "{{state}}"),
            )
        )
        .with_panel(
            graph(
                "Exposed transfer",
                "How long beta waited after alpha's end.",
                "s",
                Line(quantile(0.5, "dynaserve_handoff_exposed_seconds"), "P50"),
                Line(quantile(0.99, "dynaserve_handoff_exposed_seconds"), "P99"),
            )
        )
        .with_panel(
            share(
                "Transfer time hidden behind computation",
                "Hidden over hidden and exposed.",
                Line(f"sum({hidden}) / (sum({hidden}) + sum({exposed}))", "hidden"),
            )
        )
        .with_panel(
            graph(
                "Whole handoff",
                "From opening to the last release.",
                "s",
                Line(quantile(0.5, "dynaserve_handoff_seconds"), "P50"),
                Line(quantile(0.99, "dynaserve_handoff_seconds"), "P99"),
            )
        )
        .with_panel(
            graph(
                "KV of one handoff",
                "Bytes moved.",
                "bytes",
                Line(quantile(0.5, "dynaserve_handoff_size_bytes"), "P50"),
                Line(quantile(0.99, "dynaserve_handoff_size_bytes"), "P99"),
            )
        )
        .with_row(Row("Links"))
        .with_panel(
            graph(
                "KV a second by transport",
                "What moved between instances.",
                "Bps",
                Line(
                    f"sum by (transport) ({rate('dynaserve_handoff_bytes_total')})", "{{transport}}"
                ),
            )
        )
        .with_panel(
            graph(
                "Bandwidth of a handoff",
                "Bytes over the time the link was busy with them, median.",
                "Bps",
                Line(
                    quantile(0.5, "dynaserve_handoff_bandwidth_bytes_per_second", "transport"),
                    "{{transport}}",
                ),
            )
        )
        .with_panel(
            graph(
                "KV sent a second",
                "By the instance that sent it.",
                "Bps",
                Line(
                    f"sum by (instance_id) ({rate('dynaserve_handoff_sent_bytes_total')})",
                    "{{instance_id}}",
                ),
            )
        )
        .with_panel(
            graph(
                "KV received a second",
                "By the instance that got it.",
                "Bps",
                Line(
                    f"sum by (instance_id) ({rate('dynaserve_handoff_received_bytes_total')})",
                    "{{instance_id}}",
                ),
            )
        )
    )
