"""A real Prometheus scrapes a real pool under load: boards and alerts see it; names are right."""

import asyncio
import json
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dynaserve.demo_model import demo_model
from dynaserve.local_pool.background import BackgroundPool
from dynaserve.testing import free_port
from infra.grafana.generate import generate
from shared.bus_nats import NatsBus
from shared.latency_model import DEFAULT_PROFILE
from shared.schemas.place import SetPolicy
from shared.schemas.segment import ControlReply
from shared.subjects import Subjects
from tests.integration import mixed_load
from tests.integration.observed_pool import ask, simulated_pool
from tests.integration.prometheus import Prometheus

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="no prometheus on this machine (Debian: apt install prometheus)",
    ),
]

LOAD_S = 12.0
DATA_WITHIN_S = 30.0
MAX_SERIES = 200
UNITS = frozenset(
    "seconds bytes tokens requests ratio handoffs segments blocks messages placements errors "
    "consumers reconnects fallbacks events items instances recoveries deltas leases steps "
    "mode".split()
)
LABELS = frozenset(
    "le actor code ended group how instance_id kind mode objective outcome phase policy queue "
    "reason region role side slo slo_class state stream transport".split()
)
VARIABLES = {"$pool": ".*", "$slo_class": ".*", "$__rate_interval": "20s"}


@pytest.fixture(scope="module")
def log_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def pool(log_folder: Path) -> Iterator[BackgroundPool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNASERVE_GATEWAY_MAX_IN_FLIGHT", "30")
        with simulated_pool(log_folder, "watched") as running:
            yield running


@pytest.fixture(scope="module")
def prometheus(
    pool: BackgroundPool, log_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Has seen the pool under load."""
    with Prometheus(tmp_path_factory.mktemp("prometheus"), log_folder) as running:
        asyncio.run(mixed_load.run(pool.url, LOAD_S))
        yield running


def expressions() -> list[tuple[str, str]]:
    """(board and panel, PromQL) of every panel, variables filled in."""
    found = []
    for text in generate().values():
        board: dict[str, Any] = json.loads(text)
        for panel in board["panels"]:
            for inner in panel.get("panels") or [panel]:
                for target in inner.get("targets", []):
                    if expr := target.get("expr"):
                        for name, value in VARIABLES.items():
                            expr = expr.replace(name, value)
                        found.append((f"{board['title']} / {inner['title']}", expr))
    return found


def until_data(prometheus: Prometheus, wanted: dict[str, str]) -> dict[str, str]:
    """Those of ``wanted`` that give no data in time."""
    deadline_s = time.monotonic() + DATA_WITHIN_S
    while wanted and time.monotonic() < deadline_s:
        wanted = {e: where for e, where in wanted.items() if not prometheus.has_data(e)}
        if wanted:
            time.sleep(1.0)
    return wanted


def test_every_part_is_scraped(prometheus: Prometheus, pool: BackgroundPool) -> None:
    assert prometheus.healthy_targets() == set(pool.pids())


def test_every_panel_of_every_board_shows_data(prometheus: Prometheus) -> None:
    wanted = {expr: where for where, expr in expressions()}
    assert len(wanted) > 60
    assert until_data(prometheus, wanted) == {}


def test_every_rule_has_data_to_judge(prometheus: Prometheus) -> None:
    """An alert that does not fire gives nothing; with ``bool`` it tells what it compared."""
    rules = prometheus.alert_expressions()
    assert len(rules) >= 18
    judged = {re.sub(r" (==|>|<) (?=[\d.]+)", r" \1 bool ", q): name for name, q in rules.items()}
    assert until_data(prometheus, judged) == {}


def test_a_class_that_is_late_burns_its_budget_and_the_others_do_not(
    prometheus: Prometheus,
) -> None:
    burn = 'dynaserve:slo_burn:ratio_rate5m{slo_class="%s"}'
    (tight,) = prometheus.value(burn % "tight").values()
    (chat,) = prometheus.value(burn % "chat").values()
    assert tight > 14.4  # a gap of 5 ms between tokens cannot be met here
    assert chat < tight


async def test_an_instance_that_is_slower_than_the_others_stands_out(
    prometheus: Prometheus, pool: BackgroundPool, log_folder: Path
) -> None:
    bus = await NatsBus.connect(pool.nats_url, "test")
    slow = SlowInstance(pool, log_folder)
    try:
        await slow.join()
        await _set_policy(bus, pool, "round_robin")  # ours would pass a slow instance by
        late = prometheus.alert_expressions()["StepsMissTheirSlo"].split(" > ")[0]
        burn = 'dynaserve:slo_burn:ratio_rate5m{slo_class="watched"}'
        async with asyncio.timeout(60):
            while not _stands_out(slow.name, prometheus.value(late)):
                await _chats(pool)
        assert max(prometheus.value(burn).values()) > 14.4
    finally:
        await _set_policy(bus, pool, pool.settings.policy)
        await slow.leave()
        await bus.close()


class SlowInstance:
    """A third simulated instance whose steps take eight times as long."""

    name = "instance-slow"

    def __init__(self, pool: BackgroundPool, log_folder: Path) -> None:
        profile = json.loads(DEFAULT_PROFILE.read_text())
        profile["model"] = {name: 8 * value for name, value in profile["model"].items()}
        self._pool = pool
        self._profile = log_folder / "slow.json"
        self._profile.write_text(json.dumps(profile))
        self._targets = log_folder / "targets" / "slow.json"

    async def join(self) -> None:
        port = free_port()
        group = {
            "targets": [f"127.0.0.1:{port}"],
            "labels": {"service": "gpu_instance", "part": self.name, "pool": self._pool.pool},
        }
        self._targets.write_text(json.dumps([group]))
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.gpu_instance", str(demo_model())),
            *("--engine", "simulated", "--profile", str(self._profile), "--vocab-size", "1000"),
            *("--nats", self._pool.nats_url, "--pool", self._pool.pool, "--id", self.name),
            *("--metrics-port", str(port), "--drain-s", "1"),
        )
        async with asyncio.timeout(30), httpx.AsyncClient(base_url=self._pool.url) as client:
            while self.name not in (await client.get("/dynaserve/pool")).text:
                await asyncio.sleep(0.2)

    async def leave(self) -> None:
        self._targets.unlink()
        self._process.terminate()
        await self._process.wait()


def _stands_out(name: str, shares: dict[str, float]) -> bool:
    own = shares.get(name, 0.0)
    return own > 0.5 and all(own > 2 * other for part, other in shares.items() if part != name)


async def _set_policy(bus: NatsBus, pool: BackgroundPool, policy: str) -> None:
    subject = Subjects(pool.pool).all_schedulers
    answer = await bus.request(subject, SetPolicy(policy=policy), 5.0)
    assert ControlReply.model_validate_json(answer.data).ok


async def _chats(pool: BackgroundPool) -> None:
    headers = {"x-slo-class": "watched", "x-slo-tpot-ms": "40"}
    async with httpx.AsyncClient(base_url=pool.url, timeout=60) as client:
        answers = await asyncio.gather(
            *(
                client.post("/v1/completions", json=ask(64, 24, "never"), headers=headers)
                for _ in range(9)
            )
        )
    assert {answer.status_code for answer in answers} == {200}


def scrape(log_folder: Path) -> dict[str, str]:
    """Every part's exposition."""
    (file,) = log_folder.glob("targets/*.json")
    return {
        group["labels"]["part"]: httpx.get(f"http://{group['targets'][0]}/metrics").text
        for group in json.loads(file.read_text())
    }


def test_names_say_their_unit_and_labels_come_from_closed_sets(
    prometheus: Prometheus, log_folder: Path
) -> None:
    num_seen = 0
    for part, text in scrape(log_folder).items():
        for family in text_string_to_metric_families(text):
            if not family.name.startswith("dynaserve_"):
                continue
            num_seen += 1
            assert UNITS & set(family.name.split("_")), f"{part}: {family.name}"
            assert family.documentation, f"{part}: {family.name}"
            for sample in family.samples:
                assert set(sample.labels) <= LABELS, f"{part}: {sample}"
            assert len(family.samples) <= MAX_SERIES, f"{part}: {family.name}"
    assert num_seen > 80


def test_the_names_of_the_conventions_and_of_vllm_are_there(
    prometheus: Prometheus, log_folder: Path
) -> None:
    text = scrape(log_folder)["gateway-0"]
    for name in (
        "gen_ai_server_time_to_first_token_seconds_bucket",
        "gen_ai_server_time_per_output_token_seconds_bucket",
        "gen_ai_server_request_duration_seconds_bucket",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:num_requests_running",
    ):
        assert name in text


def test_what_clients_choose_does_not_grow_the_series(
    prometheus: Prometheus, pool: BackgroundPool, log_folder: Path
) -> None:
    request_ids = [uuid.uuid4().hex for _ in range(50)]
    with httpx.Client(base_url=pool.url, timeout=60) as client:
        for number, request_id in enumerate(request_ids):
            headers = {"x-request-id": request_id, "x-slo-class": f"made-up-{number}"}
            answer = client.post("/v1/completions", json=ask(8, 1), headers=headers)
            assert answer.status_code == 200
    for text in scrape(log_folder).values():
        assert not any(request_id in text for request_id in request_ids)
        classes = set(re.findall(r'slo_class="([^"]+)"', text))
        assert len(classes) <= 33
        if "made-up-49" not in classes and classes:
            assert "other" in classes
