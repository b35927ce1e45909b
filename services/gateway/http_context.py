"""What an HTTP request says beside its body: id, objectives, trace. And how it reaches the engine.

The middleware puts an ``HttpContext`` into a context variable; every task vLLM starts for the
request inherits it, down to the engine client.
"""

import asyncio
import json
import math
import uuid
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import islice

from services.gateway.settings import GatewaySettings
from shared.errors import InvalidRequest
from shared.schemas.place import Plan
from shared.schemas.request import Slo

MAX_ID_LENGTH = 128
TRACE_HEADERS = ("traceparent", "tracestate")
PLAN_HEADER = "x-dynaserve-plan"
MAX_PLANS_TOLD = 16


@dataclass(slots=True)
class HttpContext:
    """One HTTP request. ``retry_after_s`` is set when it is refused for lack of room."""

    request_id: str
    slo: Slo
    trace_headers: dict[str, str] | None = None
    retry_after_s: float | None = None
    wants_plan: bool = False
    plans: dict[str, Plan] = field(default_factory=dict)
    """The latest of each of its requests to the pool."""
    is_planned: asyncio.Event = field(default_factory=asyncio.Event)
    operation: str = "text_completion"
    """As the semantic conventions for generative AI name what is asked for."""
    received_s: float | None = None
    """Unix time."""


current: ContextVar[HttpContext | None] = ContextVar("dynaserve_http_context", default=None)


def read_context(headers: Mapping[str, str], settings: GatewaySettings) -> HttpContext:
    """Raises InvalidRequest naming the header at fault. Header names are lower case."""
    return HttpContext(
        request_id=_request_id(headers.get("x-request-id")),
        slo=Slo(
            ttft_s=_milliseconds(headers, "x-slo-ttft-ms", settings.slo_ttft_ms) / 1e3,
            tbt_s=_milliseconds(headers, "x-slo-tpot-ms", settings.slo_tbt_ms) / 1e3,
            name=_class_name(headers.get("x-slo-class", "default")),
        ),
        trace_headers={k: headers[k] for k in TRACE_HEADERS if k in headers} or None,
        wants_plan=_wants_plan(headers.get(PLAN_HEADER)),
    )


def _wants_plan(given: str | None) -> bool:
    if given not in (None, "0", "1"):
        raise InvalidRequest(f"must be 1 or 0, not {given!r}", PLAN_HEADER)
    return given == "1"


def plan_lines(plans: Iterable[Plan]) -> list[str]:
    """One header line a plan: JSON in ASCII with where it runs, where it is cut, and why there.

    Joined by commas, as HTTP allows, they are what stands between the brackets of a JSON array.
    """
    return [
        json.dumps(
            {
                "alpha": plan.alpha_id,
                "beta": plan.beta_id,
                "cut": plan.cut,
                "reason": plan.reason,
            }
        )
        for plan in islice(plans, MAX_PLANS_TOLD)
    ]


def operation_of(path: str) -> str:
    """What the HTTP path asks for."""
    if "/chat/" in path:
        return "chat"
    return "embeddings" if path.endswith("/embeddings") else "text_completion"


def _request_id(given: str | None) -> str:
    if given is None:
        return uuid.uuid4().hex
    if not 0 < len(given) <= MAX_ID_LENGTH or not given.isprintable():
        raise InvalidRequest(f"must be 1 to {MAX_ID_LENGTH} printable characters", "X-Request-Id")
    return given


def _milliseconds(headers: Mapping[str, str], name: str, default: float) -> float:
    given = headers.get(name)
    if given is None:
        return default
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InvalidRequest(f"must be a positive number of milliseconds, not {given!r}", name)
    return value


def _class_name(given: str) -> str:
    if not 0 < len(given) <= 32 or not given.isprintable():
        raise InvalidRequest("must be 1 to 32 printable characters", "x-slo-class")
    return given
