"""Everything an instance may find on its control subject."""

from typing import Annotated

from pydantic import Field, TypeAdapter

from shared.schemas.handoff import HandoffAbort, HandoffStart
from shared.schemas.segment import (
    Continuation,
    Drain,
    InspectEngine,
    ReadPrefixes,
    ReadSteps,
    ResetPrefixCache,
    SegmentCancel,
    SetBatcher,
)

InstanceControl = Annotated[
    SegmentCancel
    | Continuation
    | SetBatcher
    | ResetPrefixCache
    | Drain
    | InspectEngine
    | ReadPrefixes
    | ReadSteps
    | HandoffStart
    | HandoffAbort,
    Field(discriminator="kind"),
]
INSTANCE_CONTROL: TypeAdapter[InstanceControl] = TypeAdapter(InstanceControl)
