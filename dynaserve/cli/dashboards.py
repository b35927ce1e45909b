"""``dynaserve dashboards``: the boards of infra/grafana, sent to a Grafana."""

from collections.abc import Sequence
from typing import Annotated

import typer

from infra.grafana.push import Target
from infra.grafana.push import push as push_boards

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def dashboards() -> None:
    """Boards for Grafana."""


@app.command()
def push(
    grafana: Annotated[str, typer.Option(help="URL of Grafana.")],
    token: Annotated[
        str | None, typer.Option(envvar="GRAFANA_TOKEN", help="Service account token.")
    ] = None,
    user: Annotated[str | None, typer.Option(envvar="GRAFANA_USER", help="User name.")] = None,
    password: Annotated[
        str | None, typer.Option(envvar="GRAFANA_PASSWORD", help="The user's password.")
    ] = None,
    prometheus: Annotated[
        str | None,
        typer.Option(help="Also set up this Prometheus as a data source; URL as Grafana sees it."),
    ] = None,
    tempo: Annotated[
        str | None, typer.Option(help="The same for a Tempo, where traces are kept.")
    ] = None,
) -> None:
    """Put folder, data sources and boards into a Grafana. May be done again at any time."""
    if (user is None) != (password is None):
        raise typer.BadParameter("--user and --password go together")
    if token is not None and user is not None:
        raise typer.BadParameter("give --token, or --user and --password")
    pair = (user, password) if user is not None and password is not None else None
    for line in push_boards(Target(grafana, token or pair, prometheus, tempo)):
        typer.echo(line)


def main(arguments: Sequence[str]) -> None:
    """The verb with its arguments."""
    app(args=list(arguments), prog_name="dynaserve dashboards")
