"""``dynaserve top``: watch the pool in the terminal."""

from typing import Annotated

import typer

from dynaserve.top.app import TopApp


def top(
    url: Annotated[str, typer.Option(help="A gateway of the pool.")] = "http://127.0.0.1:8000",
) -> None:
    """Objectives held, instances, last requests and handoffs, twice a second.

    Keys: q quit, p pause, m missed requests only, w worst instances first, h handoffs,
    1 2 3 4 go to a table, arrows move, Enter or e explains a request, Escape goes back.
    """
    TopApp(url.rstrip("/")).run()
