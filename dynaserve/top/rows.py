"""A snapshot as rows of tables. Pure."""

from collections.abc import Sequence

from rich.text import Text

from shared.explanation.wording import say_s
from shared.schemas.live import (
    ClassStatus,
    HandoffRow,
    InstanceStatus,
    LiveSnapshot,
    RequestRow,
)

CLASS_COLUMNS = ("class", "held", "of", "held/s", "TTFT P50", "P99", "SLO", "gap P50", "P99", "SLO")
INSTANCE_COLUMNS = ("instance", "state", "step of SLO", "step", "batch", "wait", "KV", "tok/s")
REQUEST_COLUMNS = ("", "class", "cut", "TTFT", "P99 gap", "why", "where", "tokens", "request")
HANDOFF_COLUMNS = ("from → to", "KV", "exposed", "outcome")

BAR = 10
ALPHA, BETA, WHOLE = "#4aa8e0", "#f0b03a", "#8ea2bb"
DECODE, PREFILL, KV = "#56b4e9", "#d88abb", "#8e9bb1"
GOOD_INK, FAIR_INK, BAD_INK = "#3fc79d", "#e3b04b", "#ff8a57"
GOOD, FAIR = 0.99, 0.95


def headline(snapshot: LiveSnapshot, paused: bool, trouble: str | None) -> Text:
    """One line: whether it serves, and how much."""
    if trouble is not None:
        state = Text(f" ▲ {trouble}; trying again ", style="bold white on red")
    elif snapshot.problem is not None:
        state = Text(f" ▲ cannot serve: {snapshot.problem} ", style="bold white on red")
    else:
        state = Text(" serving ", style="bold white on dark_green")
    made = sum(instance.tokens_per_s for instance in snapshot.instances)
    facts = (
        f"  pool {snapshot.pool}  {len(snapshot.instances)} instances  "
        f"{snapshot.num_in_flight} in flight  {made:.0f} tokens/s  "
        f"policy {', '.join(snapshot.policies) or 'none'}"
    )
    return Text.assemble(state, (" paused ", "reverse") if paused else "", facts)


def class_row(status: ClassStatus) -> list[Text]:
    if status.num_requests:
        held = status.num_met / status.num_requests
        mark, style = (
            ("✓", GOOD_INK) if held >= GOOD else ("◆", FAIR_INK) if held >= FAIR else ("▲", BAD_INK)
        )
        share = Text(f"{mark} {held:.1%}", style=f"bold {style}")
    else:
        share = Text("-", style="dim")
    return [
        Text(status.name, style="bold"),
        share,
        _right(str(status.num_requests)),
        _right(f"{status.goodput_per_s:.1f}"),
        _duration(status.ttft.p50_s),
        _duration(status.ttft.p99_s, status.slo.ttft_s),
        _duration(status.slo.ttft_s, style="dim"),
        _duration(status.tbt.p50_s),
        _duration(status.tbt.p99_s, status.slo.tbt_s),
        _duration(status.slo.tbt_s, style="dim"),
    ]


def instance_row(status: InstanceStatus) -> list[Text]:
    is_late = status.step_share > 1 and status.state != "silent"
    return [
        Text(status.instance_id, style="bold"),
        _state(status, is_late),
        bar(status.step_share, BAD_INK if is_late else GOOD_INK),
        _right(say_s(status.step_s) if status.step_s else "idle"),
        Text.assemble((f"{status.num_decodes}", DECODE), "+", (f"{status.num_prefills}", PREFILL)),
        _right(str(status.num_waiting + status.num_waiting_for_kv)),
        bar(status.kv_used, BAD_INK if status.kv_used > FAIR else KV),
        _right(f"{status.tokens_per_s:.0f}"),
    ]


def _state(status: InstanceStatus, is_late: bool) -> Text:
    if status.state == "silent":
        return Text(f"▲ silent {status.silent_s:.0f} s", style=f"bold {BAD_INK}")
    if is_late:
        return Text("▲ late", style=f"bold {BAD_INK}")
    if status.state == "draining":
        return Text("draining", style=FAIR_INK)
    return Text(status.mode, style="dim")


def request_row(row: RequestRow) -> list[Text]:
    if row.outcome == "abort":
        mark = Text("○", style="dim")
    else:
        mark = Text("✓", style=GOOD_INK) if row.slo_met else Text("▲", style=f"bold {BAD_INK}")
    to = f" → {row.beta_id}" if row.beta_id else ""
    again = f" x{row.epochs}" if row.epochs > 1 else ""
    return [
        mark,
        Text(row.slo_class),
        cut_bar(row),
        _duration(row.ttft_s, row.slo.ttft_s),
        _duration(row.tbt_p99_s, row.slo.tbt_s),
        Text((row.cause or "") + again, style=BAD_INK),
        Text(f"{row.alpha_id}{to}" if row.alpha_id else "not placed", style="dim"),
        _right(f"{row.num_prompt_tokens}+{row.num_output_tokens}"),
        Text(row.http_request_id[:12], style="dim"),
    ]


def handoff_row(row: HandoffRow) -> list[Text]:
    is_bad = row.outcome in ("failed", "recomputed")
    return [
        Text(f"{row.alpha_id} → {row.beta_id}"),
        _right(f"{row.num_bytes / 1e6:.1f} MB"),
        _right(f"+{say_s(row.exposed_s)}" if row.exposed_s > 0 else "hidden"),
        Text(
            ("▲ " if is_bad else "") + row.outcome.replace("_", " "),
            style=f"bold {BAD_INK}" if is_bad else "",
        ),
    ]


def worst_first(instances: Sequence[InstanceStatus]) -> list[InstanceStatus]:
    """Silent ones, then by how long their steps are against the objective, then by KV."""
    return sorted(instances, key=lambda i: (i.state != "silent", -i.step_share, -i.kv_used))


def bar(share: float, style: str) -> Text:
    """Ten characters and the figure."""
    filled = min(BAR, round(BAR * share))
    return Text.assemble(("█" * filled, style), ("·" * (BAR - filled), "dim"), f"{share:>5.0%}")


def cut_bar(row: RequestRow) -> Text:
    """Alpha's part blue, beta's orange; full blocks are prompt, shaded ones output.

    Prompt and output have two characters at least, so that a cut in either is seen.
    """
    total = row.num_prompt_tokens + max(1, row.num_output_tokens)
    split = min(BAR - 2, max(2, round(BAR * row.num_prompt_tokens / total)))
    text = Text()
    for index in range(BAR):
        side = ALPHA if _is_alpha(row, index, split) else BETA
        style = WHOLE if row.cut is None else side
        text.append("█" if index < split else "▒", style=style)
    return text


def _is_alpha(row: RequestRow, index: int, split: int) -> bool:
    """Whether the middle of a character lies before the cut."""
    prompt, output, middle = row.num_prompt_tokens, max(1, row.num_output_tokens), index + 0.5
    if middle < split:
        position = prompt * middle / split
    else:
        position = prompt + output * (middle - split) / (BAR - split)
    return row.cut is not None and position < row.cut


def _duration(seconds: float | None, slo_s: float | None = None, style: str = "") -> Text:
    if seconds is None:
        return _right("-")
    is_late = slo_s is not None and seconds > slo_s
    said = ("▲ " if is_late else "") + say_s(seconds)
    return Text(said, style=f"bold {BAD_INK}" if is_late else style, justify="right")


def _right(said: str) -> Text:
    return Text(said, justify="right")
