"""The compiled copy is made when the sources changed, and the command goes on in it."""

import subprocess
from pathlib import Path

import pytest

from dynaserve.compiled import (
    NotCompiled,
    command_in,
    compiled_copy,
    is_current,
    is_wanted,
    sources_hash,
)

MAIN = "import sys; print('{where}', *sys.argv[1:])\n"
COMPILE = """#!/bin/sh
cd "$(dirname "$0")/.." && mkdir -p build/compiled/dynaserve && echo made >> build/log
echo "print('compiled')" > build/compiled/dynaserve/__init__.py
echo "import sys; print('compiled', *sys.argv[1:])" > build/compiled/dynaserve/__main__.py
PYTHONPATH={root} "$PYTHON" -P -c "
from pathlib import Path
from dynaserve.compiled import sources_hash
print(sources_hash(Path('.')))" > build/compiled/sources.sha256
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A tree with a command, and a script that 'compiles' it."""
    for package in ("dynaserve", "services", "scripts"):
        (tmp_path / package).mkdir()
    (tmp_path / "dynaserve" / "__init__.py").write_text("")
    (tmp_path / "dynaserve" / "__main__.py").write_text(MAIN.format(where="sources"))
    (tmp_path / "services" / "policy.py").write_text("FILL = 0.9\n")
    script = tmp_path / "scripts" / "compile"
    script.write_text(COMPILE.format(root=Path(__file__).resolve().parents[3]))
    script.chmod(0o755)
    return tmp_path


def times_made(checkout: Path) -> int:
    return len((checkout / "build" / "log").read_text().splitlines())


def test_the_copy_is_made_once_and_again_after_a_change(checkout: Path) -> None:
    assert not is_current(checkout)
    compiled_copy(checkout)
    compiled_copy(checkout)
    assert is_current(checkout) and times_made(checkout) == 1

    (checkout / "services" / "policy.py").write_text("FILL = 0.8\n")
    assert not is_current(checkout)
    compiled_copy(checkout)
    assert is_current(checkout) and times_made(checkout) == 2


def test_who_does_not_ask_gets_the_copy_that_is_there(checkout: Path) -> None:
    assert is_wanted(True, checkout) and not is_wanted(None, checkout)
    compiled_copy(checkout)
    assert is_wanted(None, checkout) and not is_wanted(False, checkout)


def test_a_file_that_moves_changes_the_hash(checkout: Path) -> None:
    before = sources_hash(checkout)
    (checkout / "services" / "policy.py").rename(checkout / "services" / "other.py")
    assert sources_hash(checkout) != before


def test_the_command_runs_in_the_copy_even_from_within_the_checkout(checkout: Path) -> None:
    arguments = ["simulate", "--compiled", "--rate", "3"]
    command, environment = command_in(compiled_copy(checkout), arguments)
    said = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
    assert said.stdout.splitlines()[-1] == "compiled simulate --rate 3"


def test_without_a_checkout_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotCompiled, match="checkout"):
        compiled_copy(tmp_path)


def test_what_the_compiler_says_is_told(checkout: Path) -> None:
    (checkout / "scripts" / "compile").write_text("#!/bin/sh\necho no gcc >&2\nexit 1\n")
    with pytest.raises(NotCompiled, match="no gcc"):
        compiled_copy(checkout)
