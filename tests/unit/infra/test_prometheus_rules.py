"""The alert rules, by Prometheus' own tool."""

import shutil
import subprocess
from pathlib import Path

import pytest

RULES = Path("infra/prometheus/rules/dynaserve.yml")
CASES = Path("infra/prometheus/tests/rules_test.yml")

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing (Debian: apt install prometheus)"
)


@pytest.mark.parametrize("what", [("check", "rules", RULES), ("test", "rules", CASES)])
def test_the_rules_are_valid_and_fire_when_they_should(what: tuple[str, str, Path]) -> None:
    done = subprocess.run(["promtool", *what], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case() -> None:
    names = {line.split(": ")[1] for line in RULES.read_text().splitlines() if "- alert:" in line}
    assert {name for name in names if name not in CASES.read_text()} == set()
