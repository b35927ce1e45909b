"""The command's root: lists every verb, imports one."""

import ast
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest

from dynaserve.cli import app
from dynaserve.cli.verbs import VERBS, Verb
from shared.errors import DynaServeError

HEAVY = ("vllm", "torch", "transformers", "numpy", "nats", "matplotlib", "textual")


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Verb]:
    """Three verbs of a module made here; ``absent`` names a module that is not there."""
    module = types.ModuleType("made_verbs")

    def plain(count: int = 1) -> None:
        print(f"plain {count}")

    def raw(arguments: list[str]) -> None:
        print(f"raw {arguments}")

    def failing() -> None:
        raise DynaServeError("the pool is away")

    vars(module).update(plain=plain, raw=raw, failing=failing)
    monkeypatch.setitem(sys.modules, "made_verbs", module)
    made = {
        "plain": Verb("made_verbs:plain", "Counts."),
        "raw": Verb("made_verbs:raw", "Takes all.", raw=True),
        "failing": Verb("made_verbs:failing", "Fails."),
        "absent": Verb("module_that_is_not_there:main", "Is absent."),
    }
    monkeypatch.setattr(app, "VERBS", made)
    return made


def run(*arguments: str) -> int:
    """Run the command and give its exit status."""
    with pytest.raises(SystemExit) as ended:
        app.main(arguments)
    code = ended.value.code
    return code if isinstance(code, int) else 1


def test_a_verb_gets_its_options(
    verbs: dict[str, Verb], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plain", "--count", "3") == 0
    assert capsys.readouterr().out == "plain 3\n"


def test_a_raw_verb_gets_its_arguments_untouched(
    verbs: dict[str, Verb], capsys: pytest.CaptureFixture[str]
) -> None:
    app.main(["raw", "--help", "--any", "x"])

    assert capsys.readouterr().out == "raw ['--help', '--any', 'x']\n"


def test_help_lists_every_verb_and_imports_none(
    verbs: dict[str, Verb], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--help") == 0

    said = capsys.readouterr().out
    assert all(verb.help in said for verb in verbs.values())


def test_an_unknown_verb_is_an_error_of_use(
    verbs: dict[str, Verb], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plian") == 2
    assert "plain" in capsys.readouterr().err


def test_an_error_of_ours_is_one_line(verbs: dict[str, Verb]) -> None:
    with pytest.raises(SystemExit, match=r"^dynaserve: the pool is away$"):
        app.main(["failing"])


def test_the_version_is_that_of_the_installed_project(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("dynaserve 0.")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, dynaserve.cli.app as app\n"
        "try: app.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_names_a_function_that_is_there(name: str) -> None:
    module, _, function = VERBS[name].target.partition(":")

    spec = find_spec(module)

    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
