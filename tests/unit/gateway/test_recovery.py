"""What the gateway decides when something goes wrong."""

from typing import Any

import pytest

from services.gateway.recovery import (
    Decision,
    Failure,
    GiveUp,
    Retry,
    Situation,
    after_failure,
    after_refusal,
    after_silence,
    needed_instances,
    suspect,
)
from services.gateway.settings import GatewaySettings
from shared.errors import DynaServeError, InvalidRequest, NoInstance, Overloaded, RequestFailed
from shared.schemas.place import PlaceRefused, Plan

SETTINGS = GatewaySettings(max_attempts=3, place_patience_s=3.0, recovery_patience_s=10.0)


def at(**known: Any) -> Situation:
    return Situation(**{"attempts": 1, "now_s": 100.0, "deadline_s": 200.0, **known})


def error_of(decision: Decision) -> DynaServeError:
    assert isinstance(decision, GiveUp)
    return decision.error


def refused(code: str, **fields: Any) -> PlaceRefused:
    return PlaceRefused.model_validate(
        {"request_id": "r", "epoch": 1, "code": code, "message": "why", **fields}
    )


def test_without_a_scheduler_the_same_question_is_asked_again_for_a_while() -> None:
    decision = after_silence("no_scheduler", at(placing_for_s=2.9), SETTINGS)
    assert isinstance(decision, Retry)
    assert not decision.fence
    assert decision.pause_s > 0


@pytest.mark.parametrize(("has_tokens", "waits"), [(False, False), (True, True)])
def test_a_client_that_has_tokens_is_worth_waiting_longer(has_tokens: bool, waits: bool) -> None:
    decision = after_silence("no_scheduler", at(placing_for_s=5.0, has_tokens=has_tokens), SETTINGS)
    assert isinstance(decision, Retry) is waits


def test_no_answer_is_fenced_as_somebody_may_have_acted() -> None:
    assert after_silence("no_answer", at(attempts=2), SETTINGS) == Retry()
    assert Retry().fence


def test_no_answer_at_all_means_nobody_can_place() -> None:
    assert isinstance(error_of(after_silence("no_answer", at(attempts=3), SETTINGS)), NoInstance)


@pytest.mark.parametrize("silence", ["no_scheduler", "no_answer"])
def test_after_the_deadline_nobody_is_asked(silence: Any) -> None:
    assert isinstance(error_of(after_silence(silence, at(now_s=200.0), SETTINGS)), RequestFailed)


def test_an_invalid_request_names_its_parameter() -> None:
    error = error_of(after_refusal(refused("invalid", param="max_tokens"), at(), SETTINGS))
    assert isinstance(error, InvalidRequest)
    assert error.param == "max_tokens"


def test_overload_carries_the_predicted_wait() -> None:
    error = error_of(after_refusal(refused("overloaded", retry_after_s=4.5), at(), SETTINGS))
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 4.5


def test_no_instance_is_told_at_once_to_a_new_request() -> None:
    assert isinstance(error_of(after_refusal(refused("no_instance"), at(), SETTINGS)), NoInstance)


@pytest.mark.parametrize("code", ["no_instance", "overloaded"])
def test_a_started_request_waits_for_room_but_not_for_ever(code: str) -> None:
    waiting = after_refusal(refused(code), at(has_tokens=True, placing_for_s=9.0), SETTINGS)
    assert isinstance(waiting, Retry)
    assert not waiting.fence
    assert isinstance(
        after_refusal(refused(code), at(has_tokens=True, placing_for_s=10.0), SETTINGS), GiveUp
    )


@pytest.mark.parametrize(
    "code", ["refused", "handoff_lost", "engine_failed", "draining", "instance_lost", "tokens_lost"]
)
def test_a_failed_segment_is_placed_anew_while_attempts_are_left(code: Any) -> None:
    failed = Failure(code, "broken", "a")
    assert after_failure(failed, at(attempts=2), SETTINGS) == Retry()
    assert isinstance(after_failure(failed, at(attempts=3), SETTINGS), GiveUp)


def test_a_request_every_instance_refused_was_too_much() -> None:
    refused_by_all = after_failure(Failure("refused", "full"), at(attempts=3), SETTINGS)
    assert isinstance(error_of(refused_by_all), Overloaded)
    lost_midway = after_failure(
        Failure("refused", "full"), at(attempts=3, has_tokens=True), SETTINGS
    )
    assert isinstance(error_of(lost_midway), RequestFailed)


def test_what_is_invalid_is_not_tried_again() -> None:
    error = error_of(after_failure(Failure("invalid", "no", "a", "logprobs"), at(), SETTINGS))
    assert isinstance(error, InvalidRequest)
    assert error.param == "logprobs"


@pytest.mark.parametrize(
    ("failed", "situation"),
    [
        (Failure("deadline", "late"), at()),
        (Failure("handoff_lost", "lost"), at(now_s=201.0)),
    ],
)
def test_after_the_deadline_nothing_is_placed(failed: Failure, situation: Situation) -> None:
    assert "deadline" in str(error_of(after_failure(failed, situation, SETTINGS)))


def plan(cut: int | None) -> Plan:
    return Plan(
        request_id="r",
        epoch=1,
        scheduler_id="s",
        policy="p",
        alpha_id="a",
        beta_id=None if cut is None else "b",
        cut=cut,
        reason="",
    )


@pytest.mark.parametrize(
    ("cut", "position", "needed"),
    [
        (None, 15, {"a"}),
        (5, 10, {"a", "b"}),  # inside the prompt: nothing came yet
        (5, 11, {"b"}),  # beta's first token came
        (12, 13, {"a", "b"}),  # alpha emitted 10..12, beta nothing yet
        (12, 14, {"b"}),
    ],
)
def test_alpha_is_needed_until_beta_speaks(
    cut: int | None, position: int, needed: set[str]
) -> None:
    assert needed_instances(plan(cut), num_prompt_tokens=10, position=position) == needed


def test_who_failed_is_stayed_away_from_and_of_a_lost_handoff_the_side_that_did_not_deliver() -> (
    None
):
    plan = Plan(
        request_id="r",
        epoch=1,
        scheduler_id="s",
        policy="p",
        alpha_id="a",
        beta_id="b",
        cut=9,
        reason="why",
    )
    assert suspect(Failure("engine_failed", "why", "b"), plan) == "b"
    assert suspect(Failure("handoff_lost", "why", "b"), plan) == "a"
    assert suspect(Failure("handoff_lost", "why", "b"), None) is None
    assert suspect(Failure("tokens_lost", "why"), plan) is None
