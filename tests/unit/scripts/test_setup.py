"""scripts/setup where nothing can be installed: it says why, and a second run does nothing."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OLD_PYTHON = '[ "$1" = --version ] && echo "Python 3.9.2"; exit 1'
# Answers the version check; a virtual environment made with it has a pip that fetches nothing.
OFFLINE_PYTHON = """
[ "$1" = -c ] && exit 0
mkdir -p .venv/bin
printf '#!/bin/sh\\necho "no route to host" >&2\\nexit 1\\n' > .venv/bin/pip
chmod +x .venv/bin/pip
"""
FULL_DISK = "echo header; echo 'disk 1 1 1048576 99% /'"
ROOMY_DISK = "echo header; echo 'disk 1 1 104857600 1% /'"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the script reads, and a folder of programs that come first."""
    for name in ("scripts/setup", "requirements/cpu.txt", "requirements/dev.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "programs").mkdir()
    return tmp_path


def stand_in(tree: Path, **programs: str) -> None:
    """Put shell scripts before the programs of the host."""
    for name, body in programs.items():
        path = tree / "programs" / name.replace("_", ".")
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)


def setup(tree: Path, settings: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit status and what was said."""
    environment = {
        "PATH": f"{tree / 'programs'}:/usr/bin:/bin",
        "HOME": os.environ.get("HOME", "/"),
        "DYNASERVE_SETUP_LOCK": "cpu",
    }
    done = subprocess.run(
        [tree / "scripts" / "setup"],
        env=environment | dict(settings or {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_an_old_python_is_refused_with_what_to_install(tree: Path) -> None:
    stand_in(
        tree, **dict.fromkeys(("python3", "python3_11", "python3_12", "python3_13"), OLD_PYTHON)
    )

    status, said = setup(tree)

    assert status == 1
    assert "Python 3.11, 3.12 or 3.13 is needed" in said
    assert "apt install python3.11" in said


def test_a_full_disk_is_said_before_anything_is_fetched(tree: Path) -> None:
    stand_in(tree, python3_11=OFFLINE_PYTHON, df=FULL_DISK)

    status, said = setup(tree)

    assert status == 1
    assert "1 GiB free" in said and "5 GiB needed" in said


def test_without_a_network_the_sources_are_named_and_nothing_counts_as_installed(
    tree: Path,
) -> None:
    stand_in(tree, python3_11=OFFLINE_PYTHON, df=ROOMY_DISK)

    status, said = setup(tree)

    assert status == 1
    assert "no route to host" in said
    assert "check the network" in said
    assert not (tree / ".venv" / ".lock-hash").exists()


def test_an_unknown_lock_is_refused(tree: Path) -> None:
    status, said = setup(tree, {"DYNASERVE_SETUP_LOCK": "tpu"})

    assert status == 1
    assert "no requirements/tpu.txt" in said


def test_what_is_installed_already_is_left_alone_until_a_lock_changes(tree: Path) -> None:
    shown = subprocess.run(
        ["bash", "-c", f"lock=cpu; {lock_hash_function()}\nlock_hash"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
    )
    (tree / ".venv").mkdir()
    (tree / ".venv" / ".lock-hash").write_text(shown.stdout)
    stand_in(tree, python3_11=OFFLINE_PYTHON, df=FULL_DISK)

    assert setup(tree) == (0, "")

    with (tree / "requirements" / "dev.txt").open("a") as lock:
        lock.write("another==1\n")
    assert setup(tree)[0] == 1


def lock_hash_function() -> str:
    """The script's own function, cut out of its text."""
    text = (ROOT / "scripts" / "setup").read_text()
    start = text.index("lock_hash() {")
    return text[start : text.index("\n}\n", start) + 2]
