"""``dynaserve explain REQUEST_ID``: what became of a request, and why."""

import asyncio
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console

from dynaserve.explain.fetch import from_bus, from_gateway
from dynaserve.explain.render import render
from shared.archive import Found
from shared.explanation import Explanation
from shared.explanation import explain as explain_record
from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffRecord


def explain(
    request_id: Annotated[
        str, typer.Argument(help="X-Request-Id of the answer, or the id in its body.")
    ],
    url: Annotated[str, typer.Option(help="A gateway of the pool.")] = "http://127.0.0.1:8000",
    nats: Annotated[
        str | None, typer.Option(help="Ask this NATS server instead of a gateway.")
    ] = None,
    pool: Annotated[str, typer.Option(help="Name of the pool on that server.")] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show the plan with all candidates, predicted and real times, and what cost the most.

    Exits with 1 when nothing is known of the request.
    """
    if nats is None:
        found = asyncio.run(from_gateway(url, request_id))
    else:
        found = asyncio.run(from_bus(nats, pool, request_id))
    console = Console(highlight=False)
    if as_json:
        console.out(to_json(found))
        return
    for index, record in enumerate(found.requests):
        own = [each for each in found.handoffs if each.request_id == record.request_id]
        if index:
            console.rule()
        console.print(render(record, own, explain_record(record, own), console.width))


class Answer(BaseModel):
    """What ``GET /dynaserve/requests/ID`` answers."""

    requests: list[RequestRecord]
    handoffs: list[HandoffRecord]
    explanations: list[Explanation]


def to_json(found: Found) -> str:
    """Records and explanations as the gateway gives them."""
    answer = Answer(
        requests=found.requests,
        handoffs=found.handoffs,
        explanations=[explain_record(record, found.handoffs) for record in found.requests],
    )
    return answer.model_dump_json(indent=2)
