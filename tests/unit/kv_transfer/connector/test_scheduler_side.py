"""The connector's scheduler side: who holds what, when it is free, and what beta may start from."""

from types import SimpleNamespace

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request, RequestStatus

from services.kv_transfer.connector.continuity import prior_tokens
from services.kv_transfer.connector.scheduler_side import ENDED_EARLY, SchedulerSide
from services.kv_transfer.connector.step import StepTransfers, Tally, WorkerNews
from shared.schemas.handoff import HandoffAbort, HandoffStart
from shared.schemas.message import pack_tokens
from shared.schemas.segment import Continuation

BLOCK = 16
DEADLINE_S = 100.0


def handoff_request(side: str, cut: int, num_prompt: int = 40, num_output: int = 0) -> Request:
    sampling = SamplingParams(
        max_tokens=20,
        extra_args={
            "kv_transfer_params": {
                "side": side,
                "handoff_id": "h",
                "request_id": "r",
                "epoch": 1,
                "cut": cut,
                "deadline_s": DEADLINE_S,
                "lease_s": 5.0,
                "peer_addresses": [],
                "transport": None,
            }
        },
    )
    request = Request("r/1/" + side, list(range(num_prompt)), sampling, None)
    request._output_token_ids.extend([0] * num_output)
    request._all_token_ids.extend([0] * num_output)
    return request


def start(side: str = "alpha") -> HandoffStart:
    return HandoffStart(
        handoff_id="h",
        request_id="r",
        epoch=1,
        side=side,
        peer_id="peer",
        peer_addresses=["peer:0"],
        transport="shm",
        deadline_s=DEADLINE_S,
        lease_s=5.0,
    )


def step_of(side: SchedulerSide, request: Request, computed: int, scheduled: int) -> StepTransfers:
    """One engine step in which ``request`` goes from ``computed`` on."""
    blocks = ([*range(100, 200)],)
    output = SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=request.request_id, num_computed_tokens=computed)
        ],
        scheduled_cached_reqs=SimpleNamespace(req_ids=[], num_computed_tokens=[]),
        num_scheduled_tokens={request.request_id: scheduled},
        kv_connector_block_state=SimpleNamespace(resolve_block_ids=lambda _id: blocks),
    )
    return side.build_orders(output)


def idle_step(side: SchedulerSide) -> StepTransfers:
    output = SimpleNamespace(
        scheduled_new_reqs=[],
        scheduled_cached_reqs=SimpleNamespace(req_ids=[], num_computed_tokens=[]),
        num_scheduled_tokens={},
        kv_connector_block_state=SimpleNamespace(resolve_block_ids=None),
    )
    return side.build_orders(output)


def heard(what: str, num_ranks: int = 1) -> WorkerNews:
    return WorkerNews({("h", what): Tally(num_ranks)})


def phases(side: SchedulerSide) -> list[str]:
    return [signal.phase for signal in side.take_signals()]


def alpha_at_work(cut: int = 40) -> tuple[SchedulerSide, Request]:
    side = SchedulerSide(BLOCK, 1)
    request = handoff_request("alpha", cut)
    side.on_new_request(request)
    side.start(start())
    return side, request


def test_alpha_lists_whole_blocks_as_they_fill_and_the_tail_at_the_cut() -> None:
    side, request = alpha_at_work(cut=40)

    first = step_of(side, request, 0, 30)
    last = step_of(side, request, 30, 10)

    assert first.offers[0].num_blocks == 3
    assert (first.filled[0].block_ids, first.filled[0].num_final) == ([100], 1)
    assert (last.filled[0].block_ids, last.filled[0].num_final) == ([101, 102], 3)


def test_alpha_frees_its_blocks_at_once_when_all_is_staged() -> None:
    side, request = alpha_at_work()
    step_of(side, request, 0, 40)
    side.hear(heard("staged"))

    request.status = RequestStatus.FINISHED_LENGTH_CAPPED
    assert side.on_request_finished(request) is False
    assert phases(side) == ["released"]
    assert side.is_sending  # bytes are still on their way

    side.hear(heard("sent"))
    assert phases(side) == ["sent_all"]
    assert side.num_open == 0


def test_alpha_holds_its_blocks_until_they_are_staged() -> None:
    side, request = alpha_at_work()
    step_of(side, request, 0, 40)
    request.status = RequestStatus.FINISHED_LENGTH_CAPPED

    assert side.on_request_finished(request) is True
    assert side.num_held_blocks == 3
    assert idle_step(side).held == {"h": request.request_id}

    side.on_transfers_finished({request.request_id}, set())
    assert phases(side) == ["released"]
    assert side.num_held_blocks == 0


def test_a_cancel_gives_back_what_an_ended_alpha_still_holds() -> None:
    side, request = alpha_at_work()
    step_of(side, request, 0, 40)
    request.status = RequestStatus.FINISHED_LENGTH_CAPPED
    side.on_request_finished(request)

    side.cancel("other", 1)
    assert not idle_step(side).withdrawn
    side.cancel("r", 1)
    assert "h" in idle_step(side).withdrawn
    side.on_transfers_finished({request.request_id}, set())
    assert phases(side) == ["cancelled", "released"]
    assert side.num_open == 0


def test_alphas_lease_ends_what_nobody_fetches() -> None:
    side, request = alpha_at_work()
    step_of(side, request, 0, 40)
    request.status = RequestStatus.FINISHED_LENGTH_CAPPED
    side.on_request_finished(request)

    assert side.expire(DEADLINE_S + 4.9) == []
    assert not idle_step(side).withdrawn
    side.expire(DEADLINE_S + 5.1)
    assert "h" in idle_step(side).withdrawn
    side.on_transfers_finished({request.request_id}, set())
    assert phases(side) == ["failed", "released"]
    assert side.num_open == 0


def test_alpha_that_ends_before_the_cut_withdraws_and_frees() -> None:
    for status, phase in (
        (RequestStatus.FINISHED_STOPPED, "ended"),
        (RequestStatus.FINISHED_ABORTED, "cancelled"),
    ):
        side, request = alpha_at_work(cut=50)
        step_of(side, request, 0, 40)
        request.status = status
        assert side.on_request_finished(request) is False
        assert phases(side) == [phase, "released"]
        assert "h" in idle_step(side).withdrawn
        assert side.num_open == 0


def test_a_preempted_alpha_lists_its_blocks_anew() -> None:
    side, request = alpha_at_work()
    step_of(side, request, 0, 32)
    request.num_preemptions += 1

    again = step_of(side, request, 0, 16)

    restart, filled = again.filled
    assert restart.restart
    assert restart.num_final == 0
    assert (filled.block_ids, filled.num_final) == ([100], 1)


def test_beta_cut_in_the_prompt_asks_for_what_its_cache_lacks() -> None:
    side = SchedulerSide(BLOCK, 1)
    request = handoff_request("beta", cut=37)
    side.on_new_request(request)

    assert side.num_matched_tokens(request, 16) == (21, True)
    side.on_allocated(request, [7, 8, 9], 21)

    (expect,) = idle_step(side).expects
    assert (expect.first_block, expect.block_ids, expect.admitted) == (1, [8, 9], True)
    assert phases(side) == ["held"]
    side.hear(heard("complete"))
    side.on_transfers_finished(set(), {request.request_id})
    assert phases(side) == ["complete", "adopted"]
    assert side.num_matched_tokens(request, 0) == (0, False)  # preempted later: computed here


def adopted_before_it_was_heard_why() -> tuple[SchedulerSide, Request]:
    side = SchedulerSide(BLOCK, 1, unix_s=iter([100.0, 100.002, 100.02]).__next__)
    request = handoff_request("beta", cut=42, num_output=3)
    side.on_new_request(request)
    side.on_allocated(request, [1, 2, 3], 42)
    idle_step(side)
    side.continue_with(
        Continuation(handoff_id="h", request_id="r", epoch=1, token_ids=pack_tokens([5, 6, 7]))
    )
    side.admit_at_once(lambda handoff_id: True)
    side.on_transfers_finished(set(), {request.request_id})
    assert phases(side) == ["held"]
    return side, request


def test_a_beta_that_goes_on_before_its_kv_was_spoken_of_is_adopted_after_that_word() -> None:
    side, _ = adopted_before_it_was_heard_why()
    side.hear(heard("complete"))
    complete, adopted = side.take_signals()
    assert (complete.phase, adopted.phase) == ("complete", "adopted")
    assert complete.exposed_s == pytest.approx(0.002)


def test_such_a_beta_is_adopted_too_when_it_ends_before_that_word() -> None:
    side, request = adopted_before_it_was_heard_why()
    request.status = RequestStatus.FINISHED_ABORTED
    side.on_request_finished(request)
    assert phases(side) == ["adopted"]


def test_tokens_that_became_known_are_told_at_once_to_a_worker_that_expects_the_kv() -> None:
    side = SchedulerSide(BLOCK, 1)
    request = handoff_request("beta", cut=42, num_output=3)
    side.on_new_request(request)
    side.on_allocated(request, [1, 2, 3], 42)
    side.continue_with(
        Continuation(handoff_id="h", request_id="r", epoch=1, token_ids=pack_tokens([5, 6, 7]))
    )
    side.admit_at_once(lambda handoff_id: False)  # its expectation is still among the orders
    assert idle_step(side).admitted == ["h"]
    side.admit_at_once(lambda handoff_id: True)
    assert idle_step(side).admitted == []


def test_orders_say_whether_the_step_computes_anything() -> None:
    side, request = alpha_at_work()
    assert step_of(side, request, 0, 16).computes
    assert not idle_step(side).computes


def test_beta_whose_cache_has_everything_needs_nothing() -> None:
    side = SchedulerSide(BLOCK, 1)
    request = handoff_request("beta", cut=32)
    side.on_new_request(request)

    assert side.num_matched_tokens(request, 32) == (0, False)
    side.on_allocated(request, [1, 2, 3], 0)

    assert phases(side) == ["not_needed"]
    assert idle_step(side).cancelled == ["h"]


def test_beta_behind_the_prompt_waits_for_tokens_and_takes_them_for_its_own() -> None:
    side = SchedulerSide(BLOCK, 1)
    request = handoff_request("beta", cut=42, num_output=3)
    side.on_new_request(request)
    side.num_matched_tokens(request, 0)
    side.on_allocated(request, [1, 2, 3], 42)
    (expect,) = idle_step(side).expects
    assert not expect.admitted

    tokens = Continuation(handoff_id="h", request_id="r", epoch=1, token_ids=pack_tokens([5, 6, 7]))
    assert side.continue_with(tokens)

    assert idle_step(side).admitted == ["h"]
    assert list(request.output_token_ids) == [5, 6, 7]
    assert list(request.all_token_ids)[-3:] == [5, 6, 7]
    assert prior_tokens(request.sampling_params) == [5, 6, 7]


def test_messages_may_come_before_their_request() -> None:
    side = SchedulerSide(BLOCK, 1)
    side.start(start())
    request = handoff_request("alpha", cut=40)
    side.on_new_request(request)
    assert len(idle_step(side).offers) == 1


def test_alpha_offers_at_once_when_its_segment_names_the_link() -> None:
    side = SchedulerSide(BLOCK, 1)
    request = handoff_request("alpha", cut=40)
    assert request.kv_transfer_params is not None
    request.kv_transfer_params |= {"peer_addresses": ["peer:7"], "transport": "tcp"}
    side.on_new_request(request)
    side.start(start())  # the coordinator's word comes later and changes nothing
    (offer,) = idle_step(side).offers
    assert (offer.peer_addresses, offer.transport) == (["peer:7"], "tcp")


def test_messages_of_another_epoch_are_refused() -> None:
    side, _request = alpha_at_work()
    idle_step(side)
    side.abort(HandoffAbort(handoff_id="h", epoch=2, reason="not yours"))
    assert phases(side) == []
    assert not idle_step(side).withdrawn


def test_beta_with_its_tokens_recomputes_when_the_kv_does_not_come() -> None:
    side = SchedulerSide(BLOCK, 1)
    request = handoff_request("beta", cut=37)
    side.on_new_request(request)
    side.num_matched_tokens(request, 0)
    side.on_allocated(request, [1, 2, 3], 37)
    side.abort(HandoffAbort(handoff_id="h", epoch=1, reason="link lost"))

    assert idle_step(side).failed == ["h"]
    assert side.expire(DEADLINE_S + 1) == []
    side.on_transfers_finished(set(), {request.request_id})
    assert phases(side) == ["held", "recomputed"]


def test_beta_without_its_tokens_is_lost_with_the_handoff() -> None:
    side = SchedulerSide(BLOCK, 1)
    request = handoff_request("beta", cut=42, num_output=3)
    side.on_new_request(request)
    assert side.expire(DEADLINE_S - 1) == []
    (lost,) = side.expire(DEADLINE_S + 1)
    assert lost.engine_request_id == request.request_id
    request.status = RequestStatus.FINISHED_ABORTED
    side.on_request_finished(request)
    assert phases(side) == ["cancelled"]
    assert side.num_open == 0


def test_a_handoff_that_failed_leaves_time_for_word_over_the_bus() -> None:
    now = [10.0]
    side = SchedulerSide(BLOCK, 1, unix_s=lambda: now[0])
    request = handoff_request("beta", cut=42, num_output=3)
    side.on_new_request(request)
    side.abort(HandoffAbort(handoff_id="h", epoch=1, reason="alpha withdrew"))
    assert side.expire(10.4) == []
    (lost,) = side.expire(10.6)
    assert lost.engine_request_id == request.request_id


@pytest.mark.parametrize(
    ("reason", "told"),
    [("sender: the link is gone", ["failed"]), (f"sender: {ENDED_EARLY}", [])],
)
def test_that_alpha_ended_early_is_no_failure_of_the_handoff(reason: str, told: list[str]) -> None:
    side = SchedulerSide(BLOCK, 1, unix_s=lambda: 10.0)
    side.on_new_request(handoff_request("beta", cut=42, num_output=3))
    side.abort(HandoffAbort(handoff_id="h", epoch=1, reason=reason))
    assert [phase for phase in phases(side) if phase == "failed"] == told


def test_tokens_within_that_time_are_enough_to_go_on() -> None:
    now = [10.0]
    side = SchedulerSide(BLOCK, 1, unix_s=lambda: now[0])
    request = handoff_request("beta", cut=42, num_output=3)
    side.on_new_request(request)
    side.abort(HandoffAbort(handoff_id="h", epoch=1, reason="link lost"))
    tokens = Continuation(handoff_id="h", request_id="r", epoch=1, token_ids=pack_tokens([5, 6, 7]))
    side.continue_with(tokens)
    assert side.expire(11.0) == []
    assert side.num_matched_tokens(request, 0) == (0, False)


def test_with_two_ranks_nothing_counts_before_both_said_it() -> None:
    side = SchedulerSide(BLOCK, 2)
    request = handoff_request("alpha", cut=40)
    side.on_new_request(request)
    side.start(start())
    step_of(side, request, 0, 40)
    side.hear(heard("staged"))
    request.status = RequestStatus.FINISHED_LENGTH_CAPPED
    assert side.on_request_finished(request) is True
    side.hear(heard("sent", num_ranks=2))
    assert phases(side) == ["sent_all"]


def test_a_receiver_that_wants_nothing_leaves_the_word_on_why_to_beta() -> None:
    """Alpha runs on to its cut and says once that it holds nothing for the handoff."""
    side, request = alpha_at_work()
    step_of(side, request, 0, 20)

    side.hear(heard("unwanted"))
    assert phases(side) == ["released"]

    request.status = RequestStatus.FINISHED_LENGTH_CAPPED
    assert side.on_request_finished(request) is False
    assert phases(side) == []
    assert side.num_open == 0


def test_blocks_held_for_a_receiver_that_wants_nothing_come_back_with_the_next_step() -> None:
    side, request = alpha_at_work()
    step_of(side, request, 0, 40)
    request.status = RequestStatus.FINISHED_LENGTH_CAPPED
    assert side.on_request_finished(request) is True

    side.hear(heard("unwanted"))
    assert phases(side) == []
    side.on_transfers_finished({request.request_id}, set())
    assert phases(side) == ["released"]
    assert side.num_open == 0


def test_steps_keep_coming_until_every_rank_has_its_staging_memory_back() -> None:
    side = SchedulerSide(BLOCK, 2)
    side.hear(WorkerNews(staging_bytes={0: 100}).aggregate(WorkerNews(staging_bytes={1: 50})))
    assert side.staging_bytes_in_use == 150
    side.hear(WorkerNews(staging_bytes={0: 0}))
    assert (side.staging_bytes_in_use, side.is_sending) == (50, True)
    side.hear(WorkerNews(staging_bytes={1: 0}))
    assert not side.is_sending


def test_the_tokens_of_a_resumed_request_travel_to_the_worker() -> None:
    side = SchedulerSide(BLOCK, 1)
    request = Request("r", [1, 2, 3], SamplingParams(max_tokens=9), None)
    request.append_output_token_ids([7, 8])
    side.on_new_request(request)
    assert prior_tokens(request.sampling_params) == [7, 8]
    assert side.num_open == 0


def test_a_fresh_request_takes_nothing_along() -> None:
    side = SchedulerSide(BLOCK, 1)
    request = Request("r", [1, 2, 3], SamplingParams(max_tokens=9), None)
    side.on_new_request(request)
    assert prior_tokens(request.sampling_params) == []
