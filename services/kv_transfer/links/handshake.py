"""What the dialling end expects of the other before a link is up."""

from typing import TypeVar

from services.kv_transfer.links.errors import LinkBroken, PathUnavailable, PeerRefused
from services.kv_transfer.links.frames import Attached, FrameSocket, Refuse, Rendezvous, Welcome

Answer = TypeVar("Answer", Welcome, Rendezvous, Attached)


def expect(wire: FrameSocket, wanted: type[Answer]) -> Answer:
    answer = wire.receive()
    if isinstance(answer, Refuse):
        raise (PathUnavailable if answer.retry_other else PeerRefused)(answer.reason)
    if not isinstance(answer, wanted):
        raise LinkBroken(f"unexpected {type(answer).__name__} in the handshake")
    return answer
