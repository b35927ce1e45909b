"""What to do when a placement does not come, or a placed segment fails. Pure decisions."""

from dataclasses import dataclass
from typing import Literal

from services.gateway.settings import GatewaySettings
from shared.errors import DynaServeError, InvalidRequest, NoInstance, Overloaded, RequestFailed
from shared.schemas.place import PlaceRefused, Plan
from shared.schemas.tokens import FailureCode

NO_SCHEDULER_PAUSE_S = 0.1
"""Between two tries while no scheduler listens: the broker says so at once."""

Silence = Literal["no_scheduler", "no_answer"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a placement will not bring the rest: told by an instance, or seen by the gateway."""

    code: FailureCode | Literal["instance_lost", "tokens_lost"]
    message: str
    instance_id: str | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Ask for a placement again after ``pause_s``; ``fence`` when the old one may yet be acted on.

    Fencing raises the epoch and cancels the one before wherever it may have arrived.
    """

    pause_s: float = 0.0
    fence: bool = True


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell the client."""

    error: DynaServeError


Decision = Retry | GiveUp


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of a request when something went wrong. Unix seconds."""

    attempts: int
    now_s: float
    deadline_s: float
    placing_for_s: float = 0.0
    has_tokens: bool = False


def after_silence(silence: Silence, at: Situation, settings: GatewaySettings) -> Decision:
    """No scheduler listens, or none answered in time.

    Without a listener nothing was started, so the same epoch is asked again until the patience
    ends. After a time-out somebody may have acted: fence, and count it as an attempt.
    """
    if at.now_s >= at.deadline_s:
        return GiveUp(RequestFailed("deadline exceeded before the request could be placed"))
    if silence == "no_scheduler":
        if at.placing_for_s < _patience_s(at, settings):
            return Retry(NO_SCHEDULER_PAUSE_S, fence=False)
        return GiveUp(NoInstance("no scheduler is there to place the request"))
    if at.attempts < settings.max_attempts:
        return Retry()
    return GiveUp(NoInstance("no scheduler answered in time"))


def after_refusal(refused: PlaceRefused, at: Situation, settings: GatewaySettings) -> Decision:
    """The scheduler said no. A client that already has tokens is worth some waiting."""
    if refused.code == "invalid":
        return GiveUp(InvalidRequest(refused.message, refused.param))
    wait_s = refused.retry_after_s if refused.retry_after_s is not None else 1.0
    if at.has_tokens and at.placing_for_s < settings.recovery_patience_s:
        return Retry(min(wait_s, 0.5), fence=False)
    if refused.code in ("overloaded", "slo"):
        return GiveUp(Overloaded(refused.message, wait_s))
    return GiveUp(NoInstance(refused.message))


def after_failure(failed: Failure, at: Situation, settings: GatewaySettings) -> Decision:
    """A segment failed or its instance vanished: place the rest anew while that makes sense."""
    if failed.code == "invalid":
        return GiveUp(InvalidRequest(failed.message, failed.param))
    if failed.code == "deadline" or at.now_s >= at.deadline_s:
        return GiveUp(RequestFailed(f"deadline exceeded: {failed.message}"))
    if at.attempts < settings.max_attempts:
        return Retry()
    if failed.code == "refused" and not at.has_tokens:
        return GiveUp(Overloaded(failed.message, 1.0))
    return GiveUp(RequestFailed(f"gave up after {at.attempts} placements: {failed.message}"))


def suspect(failed: Failure, plan: Plan | None) -> str | None:
    """The instance to stay away from. Beta reports a lost handoff; alpha did not deliver it."""
    if failed.code == "handoff_lost":
        return plan.alpha_id if plan is not None else None
    return failed.instance_id


def needed_instances(plan: Plan, num_prompt_tokens: int, position: int) -> set[str]:
    """Instances of ``plan`` without which the tokens from ``position`` on do not come.

    Alpha is done with once beta's tokens arrive: they can only follow a complete handoff.
    """
    if plan.beta_id is None or plan.cut is None:
        return {plan.alpha_id}
    beta_emits_from = max(num_prompt_tokens, plan.cut + 1)
    if position > beta_emits_from:
        return {plan.beta_id}
    return {plan.alpha_id, plan.beta_id}


def _patience_s(at: Situation, settings: GatewaySettings) -> float:
    return settings.recovery_patience_s if at.has_tokens else settings.place_patience_s
