"""The ``dynaserve`` command: finds the verb and imports that verb's module alone."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from dynaserve.cli.verbs import VERBS, Verb
from shared.errors import DynaServeError


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dynaserve {version('dynaserve')}")
        raise typer.Exit


def root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Serve large language models with requests cut at any token boundary."""


def placeholder(text: str) -> Callable[[], None]:
    """Stands for a verb that is only listed."""

    def listed() -> None: ...

    listed.__doc__ = text
    return listed


def build_app(verbs: Mapping[str, Verb], chosen: str | None) -> typer.Typer:
    """An application that lists every verb and can run the chosen one."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(root)
    for name, verb in verbs.items():
        function = verb.load() if name == chosen else placeholder(verb.help)
        app.command(name, short_help=verb.help)(function)
    return app


def run(verbs: Mapping[str, Verb], arguments: Sequence[str]) -> None:
    """Run the verb that the arguments begin with."""
    chosen = arguments[0] if arguments and arguments[0] in verbs else None
    if chosen is not None and verbs[chosen].raw:
        verbs[chosen].load()(list(arguments[1:]))
        return
    build_app(verbs, chosen)(args=list(arguments), prog_name="dynaserve")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: an error of ours is one line and status 1, others keep their traceback."""
    try:
        run(VERBS, sys.argv[1:] if arguments is None else arguments)
    except DynaServeError as error:
        raise SystemExit(f"dynaserve: {error}") from error
