"""How SLO classes fare."""

from typing import Any

import pytest

from services.gateway.live.attainment import HISTORY_SLICES, MAX_CLASSES, OTHERS, Attainment
from shared.schemas.events import RequestRecord
from shared.schemas.request import Slo
from tests.unit.shared.explanation.records import record

NOW_S = 1_000_000.0


def ended(name: str = "chat", met: bool = True, **fields: Any) -> RequestRecord:
    return record(slo=Slo(ttft_s=1, tbt_s=0.1, name=name), slo_met=met, **fields)


def test_met_and_missed_requests_are_counted_by_class() -> None:
    attainment = Attainment(NOW_S - 20)
    for met in (True, True, False):
        attainment.add(ended(met=met), NOW_S - 5)
    attainment.add(ended("batch", False, outcome="refused", ttft_s=None, tbt_p99_s=None), NOW_S)
    batch, chat = attainment.statuses(NOW_S)
    assert (chat.name, chat.num_met, chat.num_requests) == ("chat", 2, 3)
    assert (batch.num_refused, batch.num_met) == (1, 0)
    assert chat.goodput_per_s == pytest.approx(2 / 20)
    assert chat.tokens_per_s == pytest.approx(3 * 26 / 20)
    assert sum(chat.ttft.counts) == 3 and batch.ttft.counts == []
    assert chat.history[-1] == (0, 0) and chat.history[-2] == (2, 3)


def test_clients_that_hang_up_do_not_count() -> None:
    attainment = Attainment(NOW_S)
    attainment.add(ended(outcome="abort"), NOW_S)
    assert attainment.statuses(NOW_S) == []


def test_the_window_is_a_minute_and_the_history_ten() -> None:
    attainment = Attainment(NOW_S - 10_000)
    attainment.add(ended(), NOW_S - 200)
    (status,) = attainment.statuses(NOW_S)
    assert status.num_requests == 0
    assert sum(total for _, total in status.history) == 1
    assert len(status.history) == HISTORY_SLICES
    assert 60 <= attainment.window_s(NOW_S) < 70
    assert attainment.statuses(NOW_S + 1000) == []


def test_classes_are_bounded() -> None:
    attainment = Attainment(NOW_S)
    for number in range(100):
        attainment.add(ended(f"class{number:02}"), NOW_S)
    statuses = attainment.statuses(NOW_S)
    assert len(statuses) == MAX_CLASSES + 1
    others = next(status for status in statuses if status.name == OTHERS)
    assert others.num_requests == 100 - MAX_CLASSES
