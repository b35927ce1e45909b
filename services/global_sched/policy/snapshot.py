"""How the views of a policy are declared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def snapshot(cls: type[T]) -> type[T]:
    """A dataclass that the type checker holds to be frozen.

    At run time it is not: that costs 2 us of each view, and a placement makes a dozen.
    """
    return dataclass(slots=True)(cls)
