"""``dynaserve doctor``: one screen that says what is wrong and how to mend it."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dynaserve.doctor.examination import Examined, examine
from dynaserve.doctor.finding import Finding, Status

MARKS: dict[Status, Text] = {
    "ok": Text("ok", style="green"),
    "warn": Text("warn", style="yellow"),
    "fail": Text("FAIL", style="bold red"),
}


NATS_HELP = "URL of the NATS server of the pool; unset: that of the gateway on --port."


def doctor(
    nats: Annotated[str | None, typer.Option(help=NATS_HELP)] = None,
    pool: Annotated[str, typer.Option(help="Name of the pool on that server.")] = "default",
    port: Annotated[int, typer.Option(help="Port the gateway has or is to have.")] = 8000,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the findings to this file as well.")
    ] = None,
) -> None:
    """Look at this host and the pool it serves, or that --nats names. Exits with 1 on a fault."""
    findings = asyncio.run(examine(Examined(nats, pool, port)))
    Console().print(table_of(findings))
    if json_file is not None:
        json_file.write_text(to_json(findings))
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


def table_of(findings: Sequence[Finding]) -> Table:
    """One row a finding; what to do stands under what is wrong."""
    table = Table(box=None, padding=(0, 1), show_header=False)
    for finding in findings:
        said = Text(finding.detail)
        if finding.mend is not None:
            said.append(f"\n-> {finding.mend}", style="bold")
        table.add_row(MARKS[finding.status], finding.name, said)
    return table


def to_json(findings: Sequence[Finding]) -> str:
    """The findings, and whether all is well, for programs."""
    return json.dumps(
        {
            "ok": all(finding.status != "fail" for finding in findings),
            "findings": [finding.model_dump() for finding in findings],
        },
        indent=2,
    )
