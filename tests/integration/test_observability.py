"""A real Prometheus scrapes a real pool under load: boards and alerts see it; names are right."""

import asyncio
import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dynaserve.local_pool.background import BackgroundPool
from shared.bus_nats import NatsBus
from shared.schemas.place import SetPolicy
from shared.schemas.segment import ControlReply
from shared.subjects import Subjects
from tests.integration import mixed_load
from tests.integration.board_queries import queries
from tests.integration.observed_pool import ask, simulated_pool
from tests.integration.prometheus import Prometheus

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="no prometheus on this machine (Debian: apt install prometheus)",
    ),
]

CUTTING_S, LOAD_S = 4.0, 8.0
POSITIVE, NEGATIVE = 'sign="positive"', 'sign="negative"'
DATA_WITHIN_S = 30.0
MAX_SERIES = 200
UNITS = frozenset(
    "seconds bytes tokens requests ratio handoffs segments blocks messages placements errors "
    "consumers reconnects fallbacks events items instances recoveries deltas leases steps "
    "mode probes chunks".split()
)
LABELS = frozenset(
    "le actor code ended group how instance_id kind mode model objective outcome phase policy "
    "quantile queue reason region role side sign slo slo_class state stream transport".split()
)


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
        asyncio.run(keep_busy(pool))
        yield running


async def keep_busy(pool: BackgroundPool) -> None:
    """A mixed load under two policies: one that cuts everything, so that cuts are compared."""
    bus = await NatsBus.connect(pool.nats_url, "test")
    try:
        roles = dict(zip(pool.instance_ids, ("prefill", "decode"), strict=True))
        await set_policy(bus, pool, SetPolicy(policy="disaggregated", options={"roles": roles}))
        await mixed_load.run(pool.url, CUTTING_S)
        await set_policy(bus, pool, SetPolicy(policy=pool.settings.policy))
        await mixed_load.run(pool.url, LOAD_S)
    finally:
        await bus.close()


async def set_policy(bus: NatsBus, pool: BackgroundPool, policy: SetPolicy) -> None:
    answer = await bus.request(Subjects(pool.pool).all_schedulers, policy, 5.0)
    assert ControlReply.model_validate_json(answer.data).ok


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
    wanted = {of_either_sign(expr): where for where, expr in queries()}
    assert len(wanted) > 60
    assert until_data(prometheus, wanted) == {}


@pytest.mark.parametrize("sign", [POSITIVE, NEGATIVE])
def test_errors_of_both_signs_are_shown(prometheus: Prometheus, sign: str) -> None:
    lines = [expr for _, expr in queries() if sign in expr]
    assert until_data(prometheus, {" or ".join(lines): sign}) == {}


def of_either_sign(expr: str) -> str:
    """A line for errors of one sign or its twin for the other: there may be none of one."""
    if POSITIVE not in expr and NEGATIVE not in expr:
        return expr
    above = expr.replace(NEGATIVE, POSITIVE).removeprefix("-")
    return f"{above} or -{above.replace(POSITIVE, NEGATIVE)}"


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
