"""One question to the schedulers: a plan, or what to do without one."""

from pydantic import ValidationError

from services.gateway import recovery
from services.gateway.in_flight import InFlight
from services.gateway.settings import GatewaySettings
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import BusError, BusTimeout, NoInstance, NoResponder, RequestFailed
from shared.schemas.place import PLACE_REPLY, Plan


async def ask_for_plan(
    bus: Bus, subject: str, entry: InFlight, settings: GatewaySettings, clock: Clock
) -> Plan | recovery.Decision:
    """Ask whoever answers on ``subject`` to place what is left of ``entry``."""
    answer_by_s = clock.unix_s() + settings.place_timeout_s
    message = entry.place_message(settings.id).model_copy(update={"answer_by_s": answer_by_s})
    headers = entry.ask.request.trace_headers
    try:
        reply = await bus.request(subject, message, settings.place_timeout_s, headers)
    except NoResponder:
        return recovery.after_silence("no_scheduler", entry.situation(clock), settings)
    except BusTimeout:
        return recovery.after_silence("no_answer", entry.situation(clock), settings)
    except BusError as error:
        return recovery.GiveUp(NoInstance(f"the message bus is away: {error}"))
    try:
        answer = PLACE_REPLY.validate_json(reply.data)
    except ValidationError as error:
        return recovery.GiveUp(RequestFailed(f"the scheduler's answer is unreadable: {error}"))
    if isinstance(answer, Plan):
        return answer
    return recovery.after_refusal(answer, entry.situation(clock), settings)
