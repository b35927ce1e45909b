"""Segments as bytes: the request in them goes on as it came, without being written again."""

from collections.abc import Iterable, Iterator

import msgspec

from shared.schemas.segment import Segment


class _Asked(msgspec.Struct):
    """Of a `Place`, the part that is passed on."""

    request: msgspec.Raw


_ASKED = msgspec.json.Decoder(_Asked)
_REQUEST = {"request"}


def segment_messages(
    segments: Iterable[tuple[str, Segment]], place_json: bytes
) -> Iterator[tuple[str, bytes]]:
    """(instance, message) pairs; ``place_json``: the valid `Place` that ``segments`` carry out.

    A prompt of 8,192 tokens is 44 KB of JSON, which both ends of a cut get.
    """
    request = bytes(_ASKED.decode(place_json).request)
    for instance_id, segment in segments:
        rest = segment.__pydantic_serializer__.to_json(segment, exclude_none=True, exclude=_REQUEST)
        yield instance_id, b'%b,"request":%b}' % (rest[:-1], request)
