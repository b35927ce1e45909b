"""The systems of a comparison, and how their figures stand to the first one's. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from shared.errors import InvalidRequest

SYSTEM = re.compile(
    r"(?P<policy>[a-z_]+)(:(?P<prefills>[1-9]\d*)p(?P<decodes>[1-9]\d*)d)?"
    r"/(?P<batcher>slo|static:[1-9]\d*)"
)
STATIC_ROLES = "disaggregated"


@dataclass(frozen=True, slots=True)
class System:
    """A split policy of the schedulers and a batcher mode of the engines.

    ``prefills``: instances that only prefill, under the policy with static roles; None: half.
    """

    name: str
    policy: str
    batcher: str
    prefills: int | None = None
    decodes: int | None = None

    def roles(self, instance_ids: Sequence[str]) -> dict[str, str]:
        """Static roles for a pool of these instances. Raises InvalidRequest if they do not fit."""
        if self.policy != STATIC_ROLES:
            return {}
        number = len(instance_ids)
        prefills = self.prefills if self.prefills is not None else number // 2
        decodes = self.decodes if self.decodes is not None else number - prefills
        if prefills < 1 or decodes < 1 or prefills + decodes != number:
            raise InvalidRequest(f"{self.name} does not fit {number} instances", "compare")
        ordered = sorted(instance_ids)
        return {
            **dict.fromkeys(ordered[:prefills], "prefill"),
            **dict.fromkeys(ordered[prefills:], "decode"),
        }


def parse_system(text: str) -> System:
    """``POLICY/BATCHER``, e.g. ``colocated/static:8192`` or ``disaggregated:3p1d/slo``."""
    found = SYSTEM.fullmatch(text)
    if found is None or (found["prefills"] and found["policy"] != STATIC_ROLES):
        raise InvalidRequest(f"not POLICY/slo or POLICY/static:N: {text!r}", "compare")
    return System(
        text,
        found["policy"],
        found["batcher"],
        int(found["prefills"]) if found["prefills"] else None,
        int(found["decodes"]) if found["decodes"] else None,
    )


def parse_systems(texts: Sequence[str]) -> tuple[System, ...]:
    systems = tuple(parse_system(text) for text in texts)
    if len(set(systems)) < len(systems):
        raise InvalidRequest("a system is named twice", "compare")
    return systems


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure against the first system's in the same repeat: mean over repeats, and extremes."""

    mean: float
    lowest: float
    highest: float


def ratios(values: Mapping[str, Sequence[float]]) -> dict[str, Ratio | None]:
    """``values`` holds one figure per repeat for each system; the first system is the measure.

    Paired by repeat, because one repeat's systems saw the same arrivals in the same minutes. None
    where the first system's figure is 0 or missing.
    """
    reference = next(iter(values.values()), [])
    return {name: _ratio(figures, reference) for name, figures in values.items()}


def _ratio(figures: Sequence[float], reference: Sequence[float]) -> Ratio | None:
    pairs = [(a, b) for a, b in zip(figures, reference, strict=False) if a == a and b == b]
    if not pairs or any(b == 0.0 for _, b in pairs):
        return None
    each = [a / b for a, b in pairs]
    return Ratio(fmean(each), min(each), max(each))
