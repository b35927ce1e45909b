"""One of two real engines is slow: live page, boards, alerts and `explain` each tell so."""

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from dynaserve.local_pool.background import BackgroundPool
from dynaserve.testing import wait_until_whole
from shared.explanation import Explanation
from shared.schemas.live import LiveSnapshot, RequestRow
from tests.integration.board_queries import queries, queries_of
from tests.integration.browser import browser, why_missing
from tests.integration.live_load import Class, Load
from tests.integration.prometheus import Prometheus
from tests.integration.slowed import Slowed

pytestmark = [
    pytest.mark.engine,
    pytest.mark.faults,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="no prometheus on this machine (Debian: apt install prometheus)",
    ),
]

SLOW, OTHER = "instance-1", "instance-0"
STOPPED_S, RUNNING_S = 0.35, 0.1
"""Slow and not silent: who is silent gets no work."""

CLASSES: tuple[Class, ...] = (
    ("chat", 120, 48, 6000, 200),
    ("code", 200, 32, 6000, 220),
    ("batch", 160, 16, 30_000, 5000),
)
"""A stop breaks the gap that chat and code ask for; batch has time."""
LATE = ("chat", "code")
SHOWN_WITHIN_S = 45.0
EXPLAIN = (sys.executable, "-m", "dynaserve", "explain")
LATE_CARDS = "return [...document.querySelectorAll('.card.late b')].map(b => b.textContent).join()"
LATE_ROW = """return [...document.querySelectorAll('tr.row')]
    .find(row => row.textContent.includes('steps') && row.textContent.includes(arguments[0]))"""


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + SHOWN_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.25)


@pytest.fixture(scope="module")
def prometheus(
    session_pool: BackgroundPool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Has seen both instances well, and now sees one that is not; the load goes on."""
    wait_until_whole(session_pool)
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        Prometheus(folder, session_pool.settings.log_folder) as running,
        Load(session_pool.url, 5.0, CLASSES),
    ):
        until(lambda: set(LATE) <= set(held(running)))
        with Slowed(session_pool, SLOW, STOPPED_S, RUNNING_S):
            yield running


def held(prometheus: Prometheus) -> dict[str, float]:
    """Share of the requests whose gaps were in time, by class, as the fleet board asks for it."""
    (query,) = queries_of("fleet SLO", "Gaps between tokens met")
    return prometheus.value(query, "slo_class")


def without_data(prometheus: Prometheus, wanted: list[str]) -> list[str]:
    return [query for query in wanted if not prometheus.has_data(query)]


def rows(pool: BackgroundPool) -> list[RequestRow]:
    """The last requests, as the live page gets them."""
    with httpx.stream("GET", f"{pool.url}/dynaserve/events", timeout=10) as answer:
        line = next(line for line in answer.iter_lines() if line)
    return LiveSnapshot.model_validate_json(line.removeprefix("data: ")).requests


def explained(pool: BackgroundPool, row: RequestRow) -> Explanation:
    found = httpx.get(f"{pool.url}/dynaserve/requests/{row.http_request_id}").json()
    return Explanation.model_validate(found["explanations"][0])


def late_steps(pool: BackgroundPool) -> list[tuple[RequestRow, Explanation]]:
    """Recent requests that were late for the steps of an instance."""
    told = [(row, explained(pool, row)) for row in rows(pool) if not row.slo_met]
    return [(row, why) for row, why in told if why.causes and why.causes[0].kind == "steps"]


def test_the_boards_show_which_instance_and_which_classes(prometheus: Prometheus) -> None:
    (missed,) = queries_of("instances", "Steps longer than their TBT objective")
    step, _objective = queries_of("instances", "Step time, P99")

    def stands_out() -> bool:
        shares, steps_s = prometheus.value(missed), prometheus.value(step)
        return (
            shares.get(SLOW, 0.0) > 0.05
            and shares.get(SLOW, 0.0) > 3 * shares.get(OTHER, 0.0)
            and steps_s.get(SLOW, 0.0) > STOPPED_S / 2
        )

    until(stands_out)
    until(lambda: all(held(prometheus).get(name, 1.0) < 0.9 for name in LATE))
    assert held(prometheus)["batch"] > 0.95


def test_what_real_instances_and_links_do_is_on_the_boards(prometheus: Prometheus) -> None:
    """Every query of the two boards that depend on the engine; nothing was cancelled here."""
    boards = ("DynaServe: instances /", "DynaServe: transfers and links /")
    wanted = [
        query for where, query in queries() if where.startswith(boards) and "Cancel" not in where
    ]
    assert len(wanted) > 25
    until(lambda: without_data(prometheus, wanted) == [])


def test_the_alerts_fire_for_that_instance_and_those_classes(prometheus: Prometheus) -> None:
    until(lambda: bool(prometheus.firing("StepsMissTheirSlo")))
    assert {labels["part"] for labels in prometheus.firing("StepsMissTheirSlo")} == {SLOW}
    until(
        lambda: {labels["slo_class"] for labels in prometheus.firing("SloBurnsFast")} == set(LATE)
    )


def test_explain_names_the_instance_and_its_steps(
    prometheus: Prometheus, engine_pool: BackgroundPool
) -> None:
    late: list[tuple[RequestRow, Explanation]] = []

    def named() -> Counter[str | None]:
        late[:] = late_steps(engine_pool)
        return Counter(why.causes[0].instance_id for _, why in late)

    until(lambda: named()[SLOW] >= 3)
    assert named()[SLOW] > named()[OTHER]
    row = next(row for row, why in late if why.causes[0].instance_id == SLOW)
    told = subprocess.run(
        [*EXPLAIN, row.http_request_id, "--url", engine_pool.url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    said = " ".join(told.stdout.split())
    assert f"{SLOW} ran steps of" in said
    assert "against an SLO of" in said


@pytest.mark.skipif(why_missing() is not None, reason=str(why_missing()))
def test_the_live_page_marks_the_instance_and_explains_a_late_request(
    prometheus: Prometheus, engine_pool: BackgroundPool, tmp_path: Path
) -> None:
    with browser() as driver:
        wait = WebDriverWait(driver, SHOWN_WITHIN_S)
        driver.get(f"{engine_pool.url}/dynaserve")
        wait.until(lambda d: d.execute_script(LATE_CARDS) == SLOW, "not late alone")
        driver.save_screenshot(str(tmp_path / "slow-instance.png"))
        driver.find_element(By.CSS_SELECTOR, "[data-filter=missed]").send_keys(Keys.ENTER)
        wait.until(lambda d: d.execute_script(LATE_ROW, SLOW), "no late request").click()
        wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, "dialog[open] .fall svg"))
        driver.save_screenshot(str(tmp_path / "slow-request.png"))
        assert SLOW in driver.find_element(By.CSS_SELECTOR, "dialog .verdict").text
