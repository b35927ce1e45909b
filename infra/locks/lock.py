"""One lock file: exactly one pinned version a distribution, and who asked for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


@dataclass(frozen=True)
class Pin:
    """``name==version``, with the environment marker under which it is wanted."""

    name: str
    version: Version
    marker: str = ""

    def __str__(self) -> str:
        suffix = f" ; {self.marker}" if self.marker else ""
        return f"{self.name}=={self.version}{suffix}"


def parse_pin(line: str) -> Pin:
    """Read one line; anything but one exact version is refused."""
    requirement = Requirement(line.split(" #")[0])
    specifiers = list(requirement.specifier)
    if len(specifiers) != 1 or specifiers[0].operator != "==":
        raise ValueError(f"not pinned to one version: {line!r}")
    marker = str(requirement.marker) if requirement.marker else ""
    return Pin(canonicalize_name(requirement.name), Version(specifiers[0].version), marker)


def read_lock(path: Path) -> dict[str, Pin]:
    """The pins of a lock by canonical name; a distribution pinned twice is refused."""
    pins: dict[str, Pin] = {}
    for line in path.read_text().splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pin = parse_pin(line)
        if pin.name in pins:
            raise ValueError(f"{pin.name} is pinned twice in {path.name}")
        pins[pin.name] = pin
    return pins


def write_lock(path: Path, title: str, pins: Mapping[str, Pin]) -> None:
    """Write the pins in order of their names."""
    lines = [f"# {title}", "# Made by scripts/lock; not edited by hand."]
    lines += [str(pins[name]) for name in sorted(pins)]
    path.write_text("\n".join(lines) + "\n")
