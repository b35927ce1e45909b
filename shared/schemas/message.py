"""What every message has in common, and how token ids travel."""

from array import array
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

PROTOCOL_VERSION: Literal[1] = 1
"""Bumped on any incompatible change; records with another version are refused."""

InstanceId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""A name that is a single NATS subject token."""

PackedTokens = bytes
"""Token ids as little-endian uint32; base64 in JSON. 4 bytes a token, no parsing on the way."""

WIRE = ConfigDict(
    frozen=True,
    extra="forbid",
    ser_json_bytes="base64",
    val_json_bytes="base64",
    ser_json_inf_nan="constants",  # log-probabilities may be -inf
)


class Message(BaseModel):
    """Base of all bus messages: immutable, closed, versioned.

    Subclasses add ``kind: Literal["..."]``, which tells messages on one subject apart.
    """

    model_config = WIRE

    v: Literal[1] = PROTOCOL_VERSION


class Part(BaseModel):
    """A frozen piece inside a message; has no version or kind of its own."""

    model_config = WIRE


M = TypeVar("M", bound=BaseModel)


def unchecked(model: type[M], **values: object) -> M:
    """A message from values that are known to be right; fields not named get their defaults.

    For hot paths that make many of our own parts: a twentieth of `model_construct`'s time. Fields
    with a default factory must be named.
    """
    message, set_on, defaults = object.__new__(model), object.__setattr__, _defaults(model)
    set_on(message, "__dict__", values if len(values) == len(defaults) else defaults | values)
    set_on(message, "__pydantic_fields_set__", set(values))
    set_on(message, "__pydantic_extra__", None)
    set_on(message, "__pydantic_private__", None)
    return message


@cache
def _defaults(model: type[BaseModel]) -> dict[str, object]:
    fields = model.model_fields.items()
    return {name: None if info.is_required() else info.default for name, info in fields}


def pack_tokens(token_ids: Sequence[int]) -> PackedTokens:
    """Token ids -> little-endian uint32 bytes."""
    return array("I", token_ids).tobytes()


def unpack_tokens(packed: PackedTokens) -> list[int]:
    """Inverse of ``pack_tokens``; raises ValueError when the length is no multiple of four."""
    return array("I", packed).tolist()


def num_tokens(packed: PackedTokens) -> int:
    """How many token ids ``packed`` holds."""
    return len(packed) // 4
