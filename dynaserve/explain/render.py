"""An explanation as people read it in a terminal."""

from collections.abc import Iterator

from rich.console import Group, JustifyMethod, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dynaserve.explain.waterfall import waterfall
from shared.explanation import Explanation, Regret
from shared.explanation.choice import named
from shared.explanation.wording import say_s
from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffRecord
from shared.schemas.place import Candidate, Plan


def render(
    record: RequestRecord, handoffs: list[HandoffRecord], why: Explanation, width: int
) -> Group:
    """Everything known of one request, the verdict first."""
    parts: list[RenderableType] = [*_headline(record, why), _facts(record, handoffs)]
    parts += [Text("\nWhere its time went", style="bold")]
    parts += waterfall(why.spans, record.ttft_s, width)
    if why.accounted_ttft is not None:
        covered = f"{min(1.0, why.accounted_ttft):.1%} of TTFT is accounted for"
        parts.append(Text(covered, style="dim"))
    if record.plan is not None:
        parts += _planned(record, record.plan, why)
    return Group(*parts)


def _headline(record: RequestRecord, why: Explanation) -> Iterator[RenderableType]:
    yield Text.assemble(
        ("Request ", "bold"), record.http_request_id, (f"  ({record.request_id})", "dim")
    )
    mark, style = ("✓", "bold green") if record.slo_met else ("▲", "bold red")
    yield Text(f"{mark} {why.verdict}", style=style)
    for cause in why.causes[1:4]:
        yield Text(f"  also: {cause.sentence}", style="dim")


def _facts(record: RequestRecord, handoffs: list[HandoffRecord]) -> Padding:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("where", where(record.plan))
    table.add_row(
        "tokens",
        f"{record.num_prompt_tokens} prompt ({record.num_cached_tokens} cached) "
        f"+ {record.num_output_tokens} output",
    )
    table.add_row("class", record.slo.name)
    if record.plan is not None:
        group = ", control group" if record.plan.control_group else ""
        table.add_row("why there", f"{record.plan.reason} ({record.plan.policy}{group})")
    again = f", placed {record.epochs} times" if record.epochs > 1 else ""
    table.add_row("outcome", f"{record.outcome}{again}")
    for handoff in handoffs:
        table.add_row("handoff", _handoff(handoff))
    return Padding(table, (1, 0, 0, 0))


def where(plan: Plan | None) -> str:
    """Which instances ran it, and up to where."""
    if plan is None:
        return "not placed"
    if plan.beta_id is None:
        return f"whole on {plan.alpha_id}"
    return f"{plan.alpha_id} up to token {plan.cut}, then {plan.beta_id}"


def _handoff(handoff: HandoffRecord) -> str:
    outcome = handoff.outcome.replace("_", " ")
    detail = f" ({handoff.detail})" if handoff.detail else ""
    return (
        f"{outcome}{detail}: {handoff.num_bytes / 1e6:.1f} MB by {handoff.transport} in "
        f"{say_s(handoff.transfer_s)}, {say_s(handoff.exposed_s)} exposed"
    )


def _planned(record: RequestRecord, plan: Plan, why: Explanation) -> Iterator[RenderableType]:
    yield Text("\nPredicted and real", style="bold")
    yield _predictions(record, plan)
    if not plan.candidates:
        return
    yield Text(
        f"\nCandidates (the cheapest {len(plan.candidates)}; decided in {say_s(plan.decision_s)})",
        style="bold",
    )
    yield _candidates(plan, why.regret)
    if why.choice is not None:
        yield Text(why.choice)
    if plan.unforced is None:
        yield Text(_regretted(plan, why.regret), style="dim")


def _predictions(record: RequestRecord, plan: Plan) -> Table:
    table = _table("", "predicted", "real", "objective")
    chosen = plan.chosen
    real_s, gap_s = record.ttft_s, record.tbt_p99_s
    table.add_row(
        "time to first token",
        _maybe(chosen.ttft_s if chosen else None),
        _against(real_s, record.slo.ttft_s),
        say_s(record.slo.ttft_s),
    )
    table.add_row(
        "P99 gap between tokens",
        _maybe(chosen.tbt_s if chosen else None),
        _against(gap_s, record.slo.tbt_s),
        say_s(record.slo.tbt_s),
    )
    if plan.predicted_output_tokens is not None:
        expected = f"{plan.predicted_output_tokens:.0f}"
        table.add_row("output tokens", expected, str(record.num_output_tokens), "")
    return table


def _candidates(plan: Plan, regret: Regret | None) -> Table:
    table = _table("instances", "cut", "TTFT", "gap", "cost", "")
    for candidate in plan.candidates:
        is_chosen = _key(candidate) == _key(plan)
        best = regret is not None and not regret.best_is_chosen and regret.best == candidate
        is_own = plan.unforced is not None and _key(candidate) == _key(plan.unforced)
        to = f" → {candidate.beta_id}" if candidate.beta_id else ""
        table.add_row(
            f"{'●' if is_chosen else ' '} {candidate.alpha_id}{to}",
            "uncut" if candidate.cut is None else str(candidate.cut),
            say_s(candidate.prediction.ttft_s),
            say_s(candidate.prediction.tbt_s),
            f"{candidate.prediction.cost:.3g}",
            _note(is_chosen, is_own, best),
            style="bold" if is_chosen else "",
        )
    return table


def _note(is_chosen: bool, is_own: bool, is_best: bool) -> str:
    notes = {"chosen": is_chosen, "the policy's own": is_own, "best in hindsight": is_best}
    return ", ".join(note for note, holds in notes.items() if holds)


def _key(one: Candidate | Plan) -> tuple[str, str | None, int | None]:
    return one.alpha_id, one.beta_id, one.cut


def _regretted(plan: Plan, regret: Regret | None) -> str:
    if len(plan.candidates) < 2:
        return "No other candidate was weighed."
    if regret is None:
        return "No regret can be told: nothing to compare predictions with."
    if regret.best_is_chosen:
        return "No regret: none of the others was expected to do better."
    kept = "would" if regret.would_have_met else "would not"
    return (
        f"Regret: {named(regret.best)} would have given TTFT {say_s(regret.estimated_ttft_s)} "
        f"and a gap of {say_s(regret.estimated_tbt_s)}, and {kept} have held both objectives.\n"
        f"Computed from {regret.how}."
    )


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for index, name in enumerate(names):
        justify: JustifyMethod = "right" if index and name else "left"
        table.add_column(name, justify=justify, no_wrap=index == 0)
    return table


def _maybe(seconds: float | None) -> str:
    return "-" if seconds is None else say_s(seconds)


def _against(seconds: float | None, objective_s: float) -> Text:
    is_late = seconds is not None and seconds > objective_s
    return Text(_maybe(seconds) + (" ▲" if is_late else ""), style="bold red" if is_late else "")
