"""A real Prometheus on a loopback port, with our configuration, scraping often."""

import math
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import httpx

from dynaserve.testing import free_port

OURS = Path("infra/prometheus").resolve()
START_S = 30.0


class Prometheus:
    """Scrapes the targets of the pools under ``log_folder`` while it is entered.

    Scrapes, evaluates and waits for alerts in seconds where ours does in more; the expressions and
    their windows are ours.
    """

    def __init__(self, folder: Path, log_folder: Path) -> None:
        self._folder = folder
        shutil.copytree(OURS / "rules", folder / "rules")
        text = (OURS / "prometheus.yml").read_text()
        text = text.replace("/etc/prometheus/targets", str(log_folder / "targets"))
        text = text.replace("scrape_interval: 5s", "scrape_interval: 1s")
        text = text.replace("evaluation_interval: 15s", "evaluation_interval: 1s")
        (folder / "prometheus.yml").write_text(text)
        for rules in (folder / "rules").glob("*.yml"):
            rules.write_text(re.sub(r"for: \d+[ms]", "for: 3s", rules.read_text()))
        self._url = f"http://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.Client(base_url=f"{self._url}/api/v1", timeout=10)

    def value(self, expr: str, label: str = "part") -> dict[str, float]:
        """The value of each series now, by its label ``label`` or all labels."""
        result = self._get("/query", {"query": expr})["result"]
        return {r["metric"].get(label, str(r["metric"])): float(r["value"][1]) for r in result}

    def has_data(self, expr: str, last_s: float = 60.0) -> bool:
        """Whether a range query over the last seconds gives a number anywhere."""
        now_s = time.time()
        span = {"start": now_s - last_s, "end": now_s, "step": 1}
        result = self._get("/query_range", {"query": expr, **span})["result"]
        return any(math.isfinite(float(value)) for r in result for _, value in r["values"])

    def alert_expressions(self) -> dict[str, str]:
        groups = self._get("/rules", {})["groups"]
        return {rule["name"]: rule["query"] for group in groups for rule in group["rules"]}

    def firing(self, alert: str) -> list[dict[str, str]]:
        """Labels of what the alert fires for now."""
        alerts = self._get("/alerts", {})["alerts"]
        return [
            each["labels"]
            for each in alerts
            if each["labels"]["alertname"] == alert and each["state"] == "firing"
        ]

    def healthy_targets(self) -> set[str]:
        found = self._get("/targets", {})["activeTargets"]
        return {each["labels"]["part"] for each in found if each["health"] == "up"}

    def _get(self, path: str, params: dict[str, Any]) -> Any:
        answer = self._http.get(path, params=params)
        assert answer.status_code == 200, (answer.text, params)
        return answer.json()["data"]

    def __enter__(self) -> Self:
        log = (self._folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address={self._url.removeprefix('http://')}",
            ],
            stdout=log,
            stderr=log,
        )
        log.close()
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                if self._http.get(f"{self._url}/-/ready").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline_s or self._process.poll() is not None:
                self.__exit__()
                raise RuntimeError((self._folder / "prometheus.log").read_text()[-2000:])
            time.sleep(0.1)

    def __exit__(self, *_error: object) -> None:
        self._http.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
