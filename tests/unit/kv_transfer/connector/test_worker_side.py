"""The worker side between steps: KV that has arrived is told at once, everything else is not."""

from typing import cast

import pytest

from services.kv_transfer.connector.step import Expect, StepTransfers
from services.kv_transfer.connector.worker_side import WorkerSide
from services.kv_transfer.links.events import Completed, Failed, PortEvents, Sent
from services.kv_transfer.links.port import KvPort, PortStats


class ScriptedPort:
    """Says what the test puts into ``events``."""

    def __init__(self) -> None:
        self.events = PortEvents()

    def poll(self) -> PortEvents:
        events, self.events = self.events, PortEvents()
        return events

    def expect(self, *told: object) -> None:
        """A peer would now be told to send."""

    def cancel(self, handoff_id: str) -> None:
        """Nothing of it is heard any more."""

    def stats(self) -> PortStats:
        return PortStats((), {}, {}, 0, 0, 0, 0, 0)


@pytest.fixture
def port() -> ScriptedPort:
    return ScriptedPort()


@pytest.fixture
def worker(port: ScriptedPort) -> WorkerSide:
    return WorkerSide(cast(KvPort, port), rank=0, max_piece_blocks=8)


def expect(handoff_id: str, admitted: bool = True) -> Expect:
    return Expect(handoff_id, 1, f"request of {handoff_id}", 0, [3, 4], 2e9, admitted)


def whole(handoff_id: str) -> Completed:
    return Completed(handoff_id, 1, "shm", 100, 1, 0.01, 0.02)


def test_kv_that_is_whole_is_told_before_the_next_step_and_only_once(
    port: ScriptedPort, worker: WorkerSide
) -> None:
    worker.take_orders(StepTransfers(expects=[expect("h"), expect("later")]))
    port.events.complete.append(whole("h"))
    request_ids, news = worker.take_arrived()
    assert request_ids == {"request of h"}
    assert news.tallies["h", "complete"].num_bytes == 100
    assert worker.take_arrived()[0] == set()
    worker.stage([])
    assert worker.take_finished() == (set(), set())
    assert worker.take_news() is None


def test_kv_waits_for_the_tokens_of_its_request(port: ScriptedPort, worker: WorkerSide) -> None:
    worker.take_orders(StepTransfers(expects=[expect("h", admitted=False)]))
    port.events.complete.append(whole("h"))
    assert worker.take_arrived()[0] == set()
    assert worker.admit("h")
    assert worker.take_arrived()[0] == {"request of h"}


def test_what_is_not_expected_yet_cannot_be_admitted(worker: WorkerSide) -> None:
    assert not worker.admit("unknown")


def test_a_failed_load_is_told_with_a_step_because_its_blocks_are_named_there(
    port: ScriptedPort, worker: WorkerSide
) -> None:
    worker.take_orders(StepTransfers(expects=[expect("h")]))
    port.events.failed_incoming.append(Failed("h", 1, "the link broke", 1))
    assert worker.take_arrived()[0] == set()
    assert worker.take_finished()[1] == {"request of h"}
    assert worker.take_bad_block_ids() == {3, 4}


def test_that_blocks_were_sent_is_not_told_while_the_step_that_reads_them_may_still_run(
    port: ScriptedPort, worker: WorkerSide
) -> None:
    worker.take_orders(StepTransfers(expects=[expect("h")], held={"mine": "request of mine"}))
    port.events.sent.append(Sent("mine", 1, "shm", 100, 1, 0.01, 0.0))
    port.events.complete.append(whole("h"))
    request_ids, news = worker.take_arrived()
    assert request_ids == {"request of h"}
    assert set(news.tallies) == {("h", "complete")}
    assert worker.take_finished()[0] == {"request of mine"}
    later = worker.take_news()
    assert later is not None
    assert ("mine", "sent") in later.tallies
