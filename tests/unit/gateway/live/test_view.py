"""What a snapshot says of the pool."""

from typing import Any

from services.gateway.live.flows import MAX_FLOWS, MAX_ROWS, Flows
from services.gateway.live.instances import RECENT_S, SILENT_S, Instances
from services.gateway.live.view import MAX_ROWS as MAX_REQUESTS
from services.gateway.live.view import LiveView
from shared.bus_memory import MemoryBus
from shared.registry import PoolRegistry
from shared.schemas.request import Slo
from shared.schemas.telemetry import InstanceLoad
from shared.subjects import Subjects
from tests.unit.gateway.fake_pool import instance_record
from tests.unit.shared.explanation.records import AT_S, cut_record, handoff, missed, timing


def load(instance_id: str = "a", generated: int = 0, **fields: Any) -> InstanceLoad:
    busy = {
        "instance_id": instance_id,
        "sequence": 1,
        "at_s": 0.0,
        "num_running": 5,
        "num_waiting": 2,
        "num_decodes": 4,
        "context_sum": 0,
        "outstanding_prefill_tokens": 300,
        "free_blocks": 25,
        "num_blocks": 100,
        "max_num_batched_tokens": 128,
        "step_s": 0.02,
        "slo_headroom": 0.8,
        "num_generated_tokens": generated,
    }
    return InstanceLoad.model_validate(busy | fields)


def test_an_instance_shows_its_batch_its_memory_and_its_step() -> None:
    instances, record = Instances(), instance_record("a")
    for second in range(4):
        instances.add(load(generated=100 * second), float(second))
    (status,) = instances.statuses({"a": record}, {"a": load()}, 3.0)
    assert (status.num_decodes, status.num_prefills, status.num_waiting) == (4, 1, 2)
    assert status.kv_used == 0.75
    assert abs(status.step_share - 0.2) < 1e-9
    assert status.tokens_per_s == 100.0
    assert status.state == "ready"


def test_an_idle_instance_has_no_step() -> None:
    instances = Instances()
    idle = load(num_running=0, num_decodes=0)
    (status,) = instances.statuses({"a": instance_record("a")}, {"a": idle}, 0.0)
    assert (status.step_s, status.step_share) == (0.0, 0.0)


def test_a_long_step_is_seen_though_short_ones_follow_and_for_a_while() -> None:
    instances, record = Instances(), instance_record("a")
    instances.add(load(num_steps=1, step_s=0.5, slo_headroom=-4.0), 0.0)
    instances.add(load(num_steps=2), 0.1)
    (status,) = instances.statuses({"a": record}, {"a": load()}, 0.2)
    assert (status.step_s, status.step_share) == (0.5, 5.0)
    instances.add(load(num_steps=3), RECENT_S)
    (status,) = instances.statuses({"a": record}, {"a": load()}, RECENT_S + 0.1)
    assert status.step_s == 0.02


def test_a_report_that_is_repeated_without_a_new_step_makes_no_step_recent() -> None:
    instances, record, idle = Instances(), instance_record("a"), load(num_running=0, num_steps=7)
    for second in range(5):
        instances.add(idle, float(second))
    (status,) = instances.statuses({"a": record}, {"a": idle}, 4.5)
    assert status.step_s == 0.0


def test_an_instance_that_stopped_reporting_is_silent() -> None:
    instances = Instances()
    instances.add(load(), 0.0)
    (status,) = instances.statuses({"a": instance_record("a")}, {"a": load()}, SILENT_S + 1)
    assert (status.state, status.silent_s) == ("silent", SILENT_S + 1)


def test_a_restarted_instance_counts_its_tokens_anew() -> None:
    instances = Instances()
    for at_s, generated in ((0.0, 1000), (1.0, 1100), (2.0, 0), (3.0, 50)):
        instances.add(load(generated=generated), at_s)
    (status,) = instances.statuses({"a": instance_record("a")}, {"a": load()}, 3.0)
    assert status.tokens_per_s == 50.0


def test_an_instance_that_registered_and_has_not_reported_is_shown() -> None:
    (status,) = Instances().statuses({"a": instance_record("a")}, {}, 9.0)
    assert (status.state, status.kv_used, status.tokens_per_s) == ("ready", 0.0, 0.0)


def test_instances_stand_in_the_order_of_their_numbers() -> None:
    records = {name: instance_record(name) for name in ("gpu-10", "gpu-9", "a")}
    statuses = Instances().statuses(records, {}, 0.0)
    assert [status.instance_id for status in statuses] == ["a", "gpu-9", "gpu-10"]


def test_flows_sum_a_minute_of_handoffs_and_name_the_busiest() -> None:
    flows = Flows()
    flows.add(handoff(num_bytes=999), 0.0)
    for number in range(20):
        flows.add(handoff(beta_id=f"b{number}", num_bytes=number, exposed_s=0.01 * number), 100.0)
    flows.add(handoff(beta_id="b19", outcome="recomputed", num_bytes=1), 101.0)
    busiest, count = flows.busiest(110.0)
    assert (len(busiest), count) == (MAX_FLOWS, 20)
    top = busiest[0]
    assert (top.beta_id, top.count, top.num_failed, top.num_bytes) == ("b19", 2, 1, 20)
    assert top.longest_exposed_s == 0.19
    assert [row.beta_id for row in flows.rows()][:2] == ["b19", "b19"]


def test_the_rows_of_handoffs_are_bounded() -> None:
    flows = Flows()
    for number in range(100):
        flows.add(handoff(handoff_id=str(number)), float(number))
    rows = flows.rows()
    assert len(rows) == MAX_ROWS
    assert rows[0].handoff_id == "99"


def make_view() -> LiveView:
    return LiveView("test", "g", PoolRegistry(MemoryBus(), Subjects("test")), AT_S)


def test_a_snapshot_shows_requests_with_their_cut_and_why_they_missed() -> None:
    view = make_view()
    view.add_request(cut_record(cut=500))
    late = missed(
        request_id="late",
        slo=Slo(ttft_s=0.1, tbt_s=1, name="chat"),
        segments=[timing("a", "whole", 0.0, 0.28, 1.3)],
    )
    view.add_request(late)
    view.add_handoff(handoff(), AT_S + 1)
    snapshot = view.snapshot({}, "no scheduler", 7, AT_S + 2)
    first, second = snapshot.requests
    assert (first.request_id, first.cause, first.slo_met) == ("late", "queue", False)
    assert (second.alpha_id, second.beta_id, second.cut, second.cause) == ("a", "b", 500, None)
    assert (snapshot.problem, snapshot.num_in_flight, snapshot.num_flows) == ("no scheduler", 7, 1)
    assert {status.name for status in snapshot.classes} == {"chat", "default"}


def test_a_snapshot_shows_the_newest_requests_only() -> None:
    view = make_view()
    for number in range(200):
        view.add_request(cut_record(request_id=str(number)))
    snapshot = view.snapshot({}, None, 0, AT_S)
    assert len(snapshot.requests) == MAX_REQUESTS
    assert snapshot.requests[0].request_id == "199"
