"""Frames on a socket pair."""

import socket
import struct
from collections.abc import Iterator

import pytest

from services.kv_transfer.links.errors import LinkBroken
from services.kv_transfer.links.frames import (
    MAX_REASON_CHARS,
    Ack,
    Chunk,
    FrameSocket,
    Message,
    Offer,
    encode,
    short,
)

Pair = tuple[FrameSocket, FrameSocket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    ends = FrameSocket(left, 0.05), FrameSocket(right, 0.05)
    yield *ends, left
    for end in ends:
        end.close()


@pytest.mark.parametrize(
    "message",
    [Ack(2**40), Offer("é" * 50, 1, 2, 0.5), Chunk("h", 1, 2, 3, 4, True, 5, 6, 2**63, 7)],
)
def test_a_message_arrives_as_it_was(pair: Pair, message: Message) -> None:
    pair[0].send(message)
    assert pair[1].receive() == message


def test_a_payload_follows_its_header(pair: Pair) -> None:
    pair[0].send(Ack(1), memoryview(b"abc" * 100))
    pair[0].send(Ack(2))
    assert pair[1].receive() == Ack(1)
    payload = bytearray(300)
    pair[1].receive_into(memoryview(payload))
    assert payload == b"abc" * 100 and pair[1].receive() == Ack(2)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not speak"),
        (struct.pack("!2sHI", b"DK", 99, 1), "protocol 99, this port 1"),
        (struct.pack("!2sHI", b"DK", 1, 1 << 30), "does not speak"),
        (struct.pack("!2sHI", b"DK", 1, 3) + b"\xff\xff\xff", "malformed header"),
        (encode(Ack(1))[:-1], "silent for 50 ms inside a message"),
    ],
)
def test_nonsense_breaks_the_link_with_a_reason(pair: Pair, raw: bytes, message: str) -> None:
    pair[2].send(raw)
    with pytest.raises(LinkBroken, match=message):
        pair[1].receive()


def test_the_end_of_the_peer_is_said_so(pair: Pair) -> None:
    pair[0].shutdown()
    with pytest.raises(LinkBroken, match="closed the link"):
        pair[1].receive()


def test_silence_is_an_error_only_where_an_answer_is_awaited(pair: Pair) -> None:
    pair[1].give_up_after(0.01)
    with pytest.raises(LinkBroken, match="silent for 10 ms"):
        pair[1].receive()


def test_a_peer_that_takes_nothing_stalls_the_sender(pair: Pair) -> None:
    with pytest.raises(LinkBroken, match="silent"):
        pair[0].send(Ack(1), memoryview(bytes(1 << 24)))


def test_an_oversized_header_is_not_sent_and_a_reason_is_cut_to_fit() -> None:
    with pytest.raises(LinkBroken, match="header of"):
        encode(Offer("x" * 70000, 1, 1, 1.0))
    assert len(short("x" * 9999)) == MAX_REASON_CHARS and short("why") == "why"
