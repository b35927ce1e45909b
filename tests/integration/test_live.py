"""Seeing a pool: explanations that outlive a gateway, the live page in a browser."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from dynaserve.explain.fetch import from_bus, from_gateway
from dynaserve.local_pool.background import BackgroundPool
from infra.nats import EmbeddedNats
from services.gateway.live.broadcast import MAX_CLIENTS
from shared.explanation import Explanation, explain
from shared.schemas.live import LiveSnapshot
from tests.integration.browser import PHONE, browser, why_missing
from tests.integration.live_load import CLASSES, Load
from tests.integration.observed_pool import ask, simulated_pool

pytestmark = [pytest.mark.timeout(240)]
needs_browser = pytest.mark.skipif(why_missing() is not None, reason=str(why_missing()))

P = 400


@pytest.fixture(scope="module")
def bus_server() -> Iterator[EmbeddedNats]:
    """The pool's own, so that a test can take it away."""
    with EmbeddedNats() as server:
        yield server


@pytest.fixture(scope="module")
def pool(
    tmp_path_factory: pytest.TempPathFactory, bus_server: EmbeddedNats
) -> Iterator[BackgroundPool]:
    with simulated_pool(tmp_path_factory.mktemp("logs"), "live", bus_server.url) as started:
        yield started


@contextlib.contextmanager
def more_instances(pool: BackgroundPool, *command: str) -> Iterator[None]:
    """Another process with instances for the pool."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--nats", pool.nats_url, "--pool", pool.pool]
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def send(
    pool: BackgroundPool, body: dict[str, object], **headers: str
) -> tuple[str, httpx.Headers]:
    """One request; its id and the head of its answer."""
    request_id = uuid.uuid4().hex
    with httpx.stream(
        "POST",
        f"{pool.url}/v1/completions",
        json=body,
        headers={"x-request-id": request_id, **headers},
        timeout=60,
    ) as answer:
        answer.raise_for_status()
        answer.read()
    return request_id, answer.headers


async def explained(pool: BackgroundPool, request_id: str) -> Explanation:
    """Once its record is there."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(Exception):
                found = await from_gateway(pool.url, request_id)
                return explain(found.requests[0], found.handoffs)
            await asyncio.sleep(0.05)


def snapshot(pool: BackgroundPool) -> LiveSnapshot:
    with httpx.stream("GET", f"{pool.url}/dynaserve/events", timeout=10) as answer:
        line = next(line for line in answer.iter_lines() if line)
    return LiveSnapshot.model_validate_json(line.removeprefix("data: "))


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


# -- explanations ---------------------------------------------------------------------------------


async def test_a_cut_requests_spans_account_for_its_first_token(pool: BackgroundPool) -> None:
    request_id, _ = send(pool, ask(P, 12, P - 1))
    why = await explained(pool, request_id)
    assert why.accounted_ttft is not None and why.accounted_ttft > 0.9
    assert {"alpha", "beta"} <= {span.lane for span in why.spans}


@pytest.mark.parametrize("stream", [False, True])
def test_the_plan_stands_in_the_answers_head(pool: BackgroundPool, stream: bool) -> None:
    body = {**ask(P, 8, 100), "stream": stream}
    _, head = send(pool, body, **{"x-dynaserve-plan": "1"})
    plan = json.loads(head["x-dynaserve-plan"])
    assert plan["cut"] == 100
    assert {plan["alpha"], plan["beta"]} == {"instance-0", "instance-1"}
    assert plan["reason"]
    _, plain = send(pool, body)
    assert "x-dynaserve-plan" not in plain


def test_every_choice_has_its_plan(pool: BackgroundPool) -> None:
    _, head = send(pool, {**ask(50, 4), "n": 3, "seed": 1}, **{"x-dynaserve-plan": "1"})
    assert len(json.loads(f"[{head['x-dynaserve-plan']}]")) == 3


async def test_a_record_outlives_its_gateway(pool: BackgroundPool) -> None:
    request_id, _ = send(pool, ask(P, 12, P))
    before = await explained(pool, request_id)
    pool.kill("gateway-0")
    async with asyncio.timeout(90):
        after = None
        while after is None:
            with contextlib.suppress(Exception):
                after = (await from_gateway(pool.url, request_id)).requests[0]
            await asyncio.sleep(0.2)
    found = await from_bus(pool.nats_url, pool.pool, request_id)
    assert found.requests[0] == after
    assert found.handoffs[0].outcome == "adopted"
    again = explain(found.requests[0], found.handoffs)
    assert again.verdict == before.verdict
    until(lambda: httpx.get(f"{pool.url}/health").status_code == 200, 60)
    until(lambda: request_id in {row.http_request_id for row in snapshot(pool).requests})


# -- events ---------------------------------------------------------------------------------------


def test_snapshots_come_a_few_times_a_second_and_not_more(pool: BackgroundPool) -> None:
    begun_s = time.monotonic()
    with httpx.stream("GET", f"{pool.url}/dynaserve/events", timeout=10) as answer:
        lines = (line for line in answer.iter_lines() if line)
        taken = [next(lines) for _ in range(5)]
    assert time.monotonic() - begun_s > 3 * 0.5
    assert all(json.loads(line.removeprefix("data: "))["kind"] == "live" for line in taken)


async def test_live_clients_are_bounded_and_one_that_leaves_makes_room(
    pool: BackgroundPool,
) -> None:
    limits = httpx.Limits(max_connections=2 * MAX_CLIENTS)
    async with (
        httpx.AsyncClient(base_url=pool.url, timeout=10, limits=limits) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(MAX_CLIENTS):
            answer = await stack.enter_async_context(client.stream("GET", "/dynaserve/events"))
            assert answer.status_code == 200
        refused = await client.get("/dynaserve/events")
        assert refused.status_code == 503
        assert "clients" in refused.json()["error"]["message"]
    async with httpx.AsyncClient(base_url=pool.url, timeout=10) as client, asyncio.timeout(10):
        while True:
            async with client.stream("GET", "/dynaserve/events") as answer:
                if answer.status_code == 200:
                    break
            await asyncio.sleep(0.1)


# -- the page -------------------------------------------------------------------------------------


def wait(driver: Chrome, condition: Callable[[Chrome], Any], timeout_s: float = 20) -> Any:
    return WebDriverWait(driver, timeout_s).until(condition)


def texts(driver: Chrome, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
    found: list[str] = driver.execute_script(script, selector)
    return found


def complaints(driver: Chrome) -> list[str]:
    """What the browser's console holds against the page."""
    log = driver.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in log]


@needs_browser
def test_the_page_shows_a_load_and_explains_a_request_by_keyboard(pool: BackgroundPool) -> None:
    with Load(pool.url, rate_per_s=4), browser() as driver:
        driver.get(f"{pool.url}/dynaserve")
        names = {name for name, *_ in CLASSES}
        wait(driver, lambda d: names <= {*texts(d, "#classes .class .name")})
        wait(driver, lambda d: len(texts(d, "tr.row")) >= 10)
        wait(driver, lambda d: texts(d, "#moves li"))
        assert texts(driver, "#status") == ["Serving"]
        assert texts(driver, ".card b") == ["instance-0", "instance-1"]
        assert len(driver.find_elements(By.CSS_SELECTOR, "figure svg line")) >= 2
        assert driver.find_elements(By.CSS_SELECTOR, "#flow path")
        body = driver.find_element(By.TAG_NAME, "body")
        driver.find_element(By.CSS_SELECTOR, "[data-filter=cut]").send_keys(Keys.ENTER)
        cut_rows = driver.find_elements(By.CSS_SELECTOR, "tr.row")
        assert cut_rows and all("→" in row.text for row in cut_rows[:5])
        body.send_keys("p")
        assert texts(driver, "#status") == ["Paused"]
        driver.find_element(By.CSS_SELECTOR, "tr.row").send_keys(Keys.ENTER)
        wait(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "dialog[open] .fall svg"))
        shown = driver.find_element(By.CSS_SELECTOR, "dialog").text
        assert "Predicted and real" in shown and "Candidates weighed" in shown
        driver.switch_to.active_element.send_keys(Keys.ESCAPE)
        wait(driver, lambda d: not d.find_elements(By.CSS_SELECTOR, "dialog[open]"))
        assert driver.switch_to.active_element.tag_name == "tr"
        assert complaints(driver) == []


@needs_browser
def test_on_a_phone_nothing_is_wider_than_the_screen(pool: BackgroundPool) -> None:
    with Load(pool.url, rate_per_s=3), browser(PHONE) as driver:
        driver.get(f"{pool.url}/dynaserve")
        wait(driver, lambda d: len(texts(d, "tr.row")) >= 3)
        wide = driver.execute_script(
            "return [...document.querySelectorAll('body *')].filter(e => "
            "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className || e.tagName)"
        )
        assert wide == []
        driver.find_element(By.CSS_SELECTOR, "tr.row").click()
        wait(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "dialog[open] .fall svg"))
        assert driver.execute_script("return document.querySelector('dialog').scrollWidth") <= 390


@needs_browser
def test_what_clients_name_themselves_is_shown_as_text_and_never_run(pool: BackgroundPool) -> None:
    name = "<img src=x onerror=boom()>"
    headers = {"x-slo-class": name, "x-request-id": name + uuid.uuid4().hex}
    httpx.post(
        f"{pool.url}/v1/completions", json=ask(30, 3), headers=headers, timeout=60
    ).raise_for_status()
    with browser() as driver:
        driver.get(f"{pool.url}/dynaserve")
        wait(driver, lambda d: name in texts(d, "#classes .class .name"))
        assert driver.find_elements(By.CSS_SELECTOR, "main img") == []
        driver.find_element(By.CSS_SELECTOR, "tr.row").click()
        wait(driver, lambda d: d.find_elements(By.CSS_SELECTOR, "dialog[open] .fall svg"))
        assert complaints(driver) == []


@needs_browser
def test_sixty_four_instances_fit_and_the_page_stays_quick(pool: BackgroundPool) -> None:
    with more_instances(pool, "tests.integration.simulated_fleet", "--count", "62"):
        until(lambda: len(snapshot(pool).instances) == 64)
        with Load(pool.url, rate_per_s=3), browser() as driver:
            driver.get(f"{pool.url}/dynaserve")
            wait(driver, lambda d: len(texts(d, ".card")) == 64)
            spent_ms = driver.execute_script(
                "const from = performance.now(); for (let i = 0; i < 10; i++) draw();"
                "return (performance.now() - from) / 10"
            )
            assert spent_ms < 100
            assert complaints(driver) == []
    until(lambda: len(snapshot(pool).instances) == 2)


@needs_browser
def test_a_gateway_that_goes_away_is_told_and_its_return_is_noticed(pool: BackgroundPool) -> None:
    with browser() as driver:
        driver.get(f"{pool.url}/dynaserve")
        wait(driver, lambda d: texts(d, "#status") == ["Serving"])
        pool.kill("gateway-0")
        wait(driver, lambda d: texts(d, "#status") == ["No connection"])
        assert "does not answer" in driver.find_element(By.ID, "banner").text
        wait(driver, lambda d: texts(d, "#status") == ["Serving"], 90)


@needs_browser
def test_a_bus_that_goes_away_is_told_and_its_return_is_noticed(
    pool: BackgroundPool, bus_server: EmbeddedNats
) -> None:
    with browser() as driver:
        driver.get(f"{pool.url}/dynaserve")
        wait(driver, lambda d: texts(d, "#status") == ["Serving"])
        os.kill(bus_server.pid, signal.SIGSTOP)
        try:
            wait(driver, lambda d: texts(d, "#status") == ["Cannot serve"])
            banner = driver.find_element(By.ID, "banner").text
            assert "the message bus is away" in banner and "NATS" in banner
            assert driver.find_elements(By.CSS_SELECTOR, "body.stale")
            assert httpx.get(f"{pool.url}/health").status_code == 503
        finally:
            os.kill(bus_server.pid, signal.SIGCONT)
        wait(driver, lambda d: texts(d, "#status") == ["Serving"], 30)
        wait(driver, lambda d: not d.find_elements(By.CSS_SELECTOR, "body.stale"))
        assert driver.find_element(By.ID, "banner").get_attribute("hidden")


@needs_browser
def test_without_instances_the_page_says_what_to_do(pool: BackgroundPool) -> None:
    with browser() as driver:
        driver.get(f"{pool.url}/dynaserve")
        wait(driver, lambda d: len(texts(d, ".card")) == 2)
        for name in pool.instance_ids:
            pool.pause(name)
        try:
            wait(driver, lambda d: "silent" in " ".join(texts(d, ".card .state")))
            wait(driver, lambda d: texts(d, "#status") == ["Cannot serve"])
            wait(
                driver, lambda d: "No instance is in the pool" in " ".join(texts(d, "#inst-empty"))
            )
        finally:
            for name in pool.instance_ids:
                pool.resume(name)
        wait(driver, lambda d: texts(d, "#status") == ["Serving"])
