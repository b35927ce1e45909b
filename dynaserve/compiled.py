"""The copy of the tree whose hot modules are machine code: whether it is current, how to run in it.

``python -m dynaserve.compiled`` prints the hash of the sources; scripts/compile leaves it in the
copy, and a copy with another hash is made anew before anything runs in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from shared.errors import DynaServeError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dynaserve", "infra", "services", "shared")
STAMP = "sources.sha256"
FLAG, INTERPRETED = "--compiled", "--interpreted"
COMPILE_TIMEOUT_S = 900.0


class NotCompiled(DynaServeError):
    """There is no compiled copy, and none could be made."""


def sources_hash(root: Path = ROOT) -> str:
    """Of every Python file of the packages, with its place."""
    found = sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            body = path.read_bytes()
            found.update(f"{path.relative_to(root)} {len(body)}\n".encode() + body)
    return found.hexdigest()


def is_current(root: Path = ROOT) -> bool:
    """Whether the copy was made of the sources as they are now."""
    stamp = root / "build" / "compiled" / STAMP
    return stamp.is_file() and stamp.read_text().strip() == sources_hash(root)


def is_wanted(asked: bool | None, root: Path = ROOT) -> bool:
    """Whether to go on in the copy; who did not ask gets it where that takes no compiling."""
    return is_current(root) if asked is None else asked


def compiled_copy(root: Path = ROOT) -> Path:
    """The copy's folder; made first if it is not of these sources, which takes a minute or two."""
    if not is_current(root):
        script = root / "scripts" / "compile"
        if not script.is_file():
            raise NotCompiled("only a checkout of the sources can be compiled")
        environment = os.environ | {"PYTHON": sys.executable}
        try:
            made = subprocess.run(
                [script],
                env=environment,
                capture_output=True,
                text=True,
                timeout=COMPILE_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as late:
            raise NotCompiled(f"scripts/compile took over {COMPILE_TIMEOUT_S:.0f} s") from late
        if made.returncode != 0:
            said = (made.stdout + made.stderr)[-2000:]
            raise NotCompiled(f"scripts/compile failed:\n{said}")
    return root / "build" / "compiled"


def command_in(copy: Path, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The same ``dynaserve`` command in the copy, without the flag that asked for it."""
    kept = [argument for argument in arguments if argument != FLAG]
    # -P: the working directory may be the checkout, whose modules would come first.
    return [sys.executable, "-P", "-m", "dynaserve", *kept], os.environ | {"PYTHONPATH": str(copy)}


def go_on_compiled(arguments: Sequence[str]) -> None:
    """Replace this process by the command in the copy."""
    command, environment = command_in(compiled_copy(), arguments)
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    print(sources_hash())
