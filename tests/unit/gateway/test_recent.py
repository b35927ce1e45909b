from services.gateway.recent import RecentRequests
from shared.schemas.events import RequestRecord
from shared.schemas.handoff import HandoffRecord
from shared.schemas.request import Slo


def request_record(request_id: str, http_request_id: str) -> RequestRecord:
    return RequestRecord(
        request_id=request_id,
        gateway_id="g",
        http_request_id=http_request_id,
        arrival_at_s=1.0,
        num_prompt_tokens=4,
        num_output_tokens=2,
        num_cached_tokens=0,
        slo=Slo(ttft_s=1.0, tbt_s=0.1),
        outcome="length",
        e2e_s=0.1,
        slo_met=True,
        epochs=1,
    )


def handoff_record(request_id: str) -> HandoffRecord:
    return HandoffRecord(
        handoff_id=f"{request_id}.1",
        request_id=request_id,
        epoch=1,
        alpha_id="a",
        beta_id="b",
        outcome="adopted",
        transport="shm",
        num_bytes=1,
        transfer_s=0.0,
        exposed_s=0.0,
        total_s=0.1,
    )


def test_all_choices_of_one_http_request_are_found_under_its_id() -> None:
    recent = RecentRequests()
    recent.add_request(request_record("0_x", "http"))
    recent.add_request(request_record("1_x", "http"))
    recent.add_request(request_record("y", "other"))
    requests, handoffs = recent.find("http")
    assert [record.request_id for record in requests] == ["0_x", "1_x"]
    assert handoffs == []


def test_a_handoff_is_found_whether_it_closed_before_or_after_the_request() -> None:
    recent = RecentRequests()
    recent.add_handoff(handoff_record("x"))
    recent.add_request(request_record("x", "http"))
    recent.add_request(request_record("y", "http"))
    recent.add_handoff(handoff_record("y"))
    assert [h.request_id for h in recent.find("http")[1]] == ["x", "y"]


def test_what_is_not_known_is_empty() -> None:
    assert RecentRequests().find("nothing") == ([], [])


def test_only_the_newest_are_kept() -> None:
    recent = RecentRequests(max_recent=2)
    for number in range(4):
        recent.add_request(request_record(f"r{number}", f"h{number}"))
        recent.add_handoff(handoff_record(f"r{number}"))
    assert recent.find("h1") == ([], [])
    assert len(recent.find("h3")[1]) == 1
