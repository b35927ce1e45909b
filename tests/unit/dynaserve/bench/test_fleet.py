import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynaserve.bench.client import ClientSettings
from dynaserve.bench.drive import Driven, Order
from dynaserve.bench.fleet import Fleet, shards
from dynaserve.bench.observation import Observation
from shared.errors import DynaServeError
from tests.unit.dynaserve.bench.made import request

NOWHERE = ClientSettings(("http://127.0.0.1:9",), "m", 1000, "t")


class Nobody:
    def __init__(self) -> None:
        self.num_sent = 0
        self.num_done = 0

    def sent(self, seen: Observation) -> None:
        self.num_sent += 1

    def done(self, seen: Observation) -> bool:
        self.num_done += 1
        return False


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 30))
def test_every_request_and_every_slot_goes_to_exactly_one_process(
    requests: int, processes: int, more: int
) -> None:
    order = Order(
        NOWHERE,
        tuple(request(f"r-{n}", float(n)) for n in range(requests)),
        max_concurrency=processes + more,
    )
    found = shards(order, processes)

    given = sorted(each.request_id for part in found for each in part.requests)
    assert given == sorted(each.request_id for each in order.requests)
    assert sum(part.max_concurrency or 0 for part in found) == processes + more
    assert all(part.max_concurrency for part in found)


def test_fewer_slots_than_processes_are_refused() -> None:
    with pytest.raises(DynaServeError, match="fewer slots"):
        Fleet(Order(NOWHERE, (), max_concurrency=1), 2, Nobody())


async def test_what_happened_in_each_process_comes_back_in_order() -> None:
    listener = Nobody()
    order = Order(NOWHERE, tuple(request(f"r-{n}", 0.01 * n) for n in range(6)))
    driven: Driven = await Fleet(order, 2, listener).run()

    assert [each.request.request_id for each in driven.observations] == [f"r-{n}" for n in range(6)]
    assert {each.outcome for each in driven.observations} == {"failed"}
    assert (listener.num_sent, listener.num_done) == (6, 6)
    assert not driven.stopped


async def test_a_failure_in_a_process_is_an_error_here() -> None:
    order = Order(NOWHERE, (request(), request("r-1")), num_warmups=1)

    with pytest.raises(DynaServeError, match="a client process failed"):
        await Fleet(order, 2, Nobody()).run()


class StopsAt(Nobody):
    """Has seen enough at this request's answer."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self.last = last

    def done(self, seen: Observation) -> bool:
        return seen.request.request_id == self.last


async def test_a_run_can_be_stopped_when_one_of_its_processes_has_ended() -> None:
    order = Order(NOWHERE, (request("r-0", 0.0), request("r-1", 0.0), request("r-2", 1.5)))
    driven = await Fleet(order, 2, StopsAt("r-2")).run()

    assert driven.stopped
    assert len(driven.observations) == 3
