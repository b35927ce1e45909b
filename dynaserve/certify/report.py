"""A certificate as a table and as JSON."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dynaserve.certify.tally import Certificate, Count

MAX_PROBLEMS_SHOWN = 10


def render(certificate: Certificate) -> RenderableType:
    """What was certified, and what stands against it."""
    parts: list[RenderableType] = [_table(certificate)]
    parts += [Text(line, style="red") for line in problem_lines(certificate)]
    parts.append(Text(verdict(certificate), style="bold"))
    return Group(*parts)


def verdict(certificate: Certificate) -> str:
    """One sentence, the noise floor and the versions."""
    floor, versions = certificate.noise_floor, certificate.versions
    void = f", {certificate.void} that do not count" if certificate.void else ""
    return (
        f"{certificate.cases} cases, {certificate.mismatches} different{void}, "
        f"in {certificate.duration_s:.0f} s. Uncut reruns: {floor.reruns}, "
        f"{floor.mismatches} different.\n"
        f"Largest logprob difference {certificate.max_logprob_difference:.1e} "
        f"(uncut reruns {floor.max_logprob_difference:.1e}; "
        f"tolerance {certificate.logprob_tolerance:.0e}).\n"
        f"{versions['model']} in {versions['dtype']}, vLLM {versions['vllm']}, "
        f"{versions['instances']} instances on {versions['device']}."
    )


def problem_lines(certificate: Certificate) -> Iterable[str]:
    """The first problems, each so that it can be run again."""
    for problem in certificate.problems[:MAX_PROBLEMS_SHOWN]:
        yield (
            f"case {problem.case} ({problem.subject}, P={problem.num_prompt}, "
            f"max_tokens={problem.max_tokens}, cut={problem.cut}, {problem.transport}, "
            f"caching {'on' if problem.caching else 'off'}, {problem.mode}): "
            f"{problem.difference or problem.void}"
        )
    hidden = len(certificate.problems) - MAX_PROBLEMS_SHOWN
    if hidden > 0:
        yield f"and {hidden} more; --json has them all"


def _table(certificate: Certificate) -> Table:
    table = Table(box=None, padding=(0, 2))
    table.add_column("", no_wrap=True)
    for name in ("cases", "different", "void", "logprobs by"):
        table.add_column(name, justify="right")
    _section(table, "sampling", certificate.groups)
    _section(table, "cut at", certificate.places)
    _section(table, "transport", certificate.transports)
    _section(table, "prefix caching", certificate.caching)
    _section(table, "load", certificate.modes)
    return table


def _section(table: Table, title: str, counts: dict[str, Count]) -> None:
    table.add_row(Text(title, style="bold"))
    for name, count in counts.items():
        style = "red" if count.mismatches or count.void else ""
        table.add_row(
            f"  {name}",
            str(count.cases),
            Text(str(count.mismatches), style=style),
            Text(str(count.void), style=style),
            f"{count.max_logprob_difference:.1e}",
        )
