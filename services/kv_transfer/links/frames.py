"""The control messages of a link and their framing on a stream socket.

A frame is ``magic, version, header length`` and a msgpack header; a ``Chunk`` may be followed by
its payload, which the transport reads. The dialler is always the side that sends KV.
"""

import select
import socket
import struct

import msgspec

from services.kv_transfer.links.errors import LinkBroken

MAGIC = b"DK"
VERSION = 1
MAX_HEADER_BYTES = 1 << 16
MAX_REASON_CHARS = 500
_HEAD = struct.Struct("!2sHI")


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages; the class name is the tag on the wire."""


class Hello(Frame, frozen=True, array_like=True):
    port_id: str
    target_id: str
    geometry: str
    transport: str
    staging_bytes: int


class Welcome(Frame, frozen=True, array_like=True):
    """The hello is accepted; both sides now attach the transport."""


class Rendezvous(Frame, frozen=True, array_like=True):
    """Where the two ends meet to join their devices, and how much may be on its way at once."""

    tcp_port: int
    window_bytes: int


class Attached(Frame, frozen=True, array_like=True):
    """The receiver's end of the transport is ready for chunks."""


class Refuse(Frame, frozen=True, array_like=True):
    reason: str
    retry_other: bool = False  # another transport may work


class Offer(Frame, frozen=True, array_like=True):
    handoff_id: str
    epoch: int
    num_blocks: int
    deadline_s: float  # from now


class Ready(Frame, frozen=True, array_like=True):
    handoff_id: str
    epoch: int
    first_block: int


class Chunk(Frame, frozen=True, array_like=True):
    """Blocks [first_block, first_block + num_blocks) of one handoff, all layers."""

    handoff_id: str
    epoch: int
    seq: int
    first_block: int
    num_blocks: int
    last: bool
    nbytes: int
    offset: int  # shm: where it lies in the sender's arena
    token: int  # shm: the word in front of it while it is valid
    piece_bytes: int  # device links: it goes in runs of layers of at most this size


class Ack(Frame, frozen=True, array_like=True):
    seq: int


class Withdraw(Frame, frozen=True, array_like=True):
    handoff_id: str
    epoch: int
    reason: str


class Cancel(Frame, frozen=True, array_like=True):
    handoff_id: str
    epoch: int
    reason: str


Handshake = Hello | Welcome | Rendezvous | Attached | Refuse
Message = Handshake | Offer | Ready | Chunk | Ack | Withdraw | Cancel
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_ENCODER = msgspec.msgpack.Encoder()


def short(reason: str) -> str:
    """A reason that fits a header."""
    return reason if len(reason) <= MAX_REASON_CHARS else reason[: MAX_REASON_CHARS - 3] + "..."


def encode(message: Message) -> bytes:
    body = _ENCODER.encode(message)
    if len(body) > MAX_HEADER_BYTES:
        raise LinkBroken(f"{type(message).__name__} header of {len(body)} bytes")
    return _HEAD.pack(MAGIC, VERSION, len(body)) + body


class FrameSocket:
    """One end of a link: one thread may send while another receives.

    ``give_up_after`` is for the handshake, where silence is an error; afterwards silence between
    frames is normal and only silence inside one breaks the link.
    """

    def __init__(self, sock: socket.socket, stall_timeout_s: float) -> None:
        self._sock = sock
        self._head = bytearray(_HEAD.size)
        self._stall_ms = max(1, int(stall_timeout_s * 1000))
        self._idle_ms: int | None = None
        self.is_down = False  # shutdown() was called
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            _prepare_tcp(sock)

    def give_up_after(self, idle_s: float | None) -> None:
        self._idle_ms = None if idle_s is None else max(1, int(idle_s * 1000))

    def send(self, message: Message, payload: memoryview | None = None) -> None:
        parts = [memoryview(encode(message))]
        if payload is not None:
            parts.append(payload)
        while parts:
            self._drop_sent(parts, self._send_some(parts))

    def _send_some(self, parts: list[memoryview]) -> int:
        while True:
            try:
                return self._sock.sendmsg(parts)
            except BlockingIOError:
                self._wait(select.POLLOUT, self._stall_ms)

    @staticmethod
    def _drop_sent(parts: list[memoryview], sent: int) -> None:
        while parts and sent >= len(parts[0]):
            sent -= len(parts.pop(0))
        if sent:
            parts[0] = parts[0][sent:]

    def receive(self) -> Message:
        self.receive_into(memoryview(self._head), self._idle_ms)
        magic, version, length = _HEAD.unpack(self._head)
        if magic != MAGIC or length > MAX_HEADER_BYTES:
            raise LinkBroken("the peer does not speak the KV link protocol")
        if version != VERSION:
            raise LinkBroken(f"the peer speaks KV link protocol {version}, this port {VERSION}")
        body = bytearray(length)
        self.receive_into(memoryview(body), self._stall_ms)
        try:
            return _DECODER.decode(body)
        except msgspec.MsgspecError as error:
            raise LinkBroken(f"malformed header: {error}") from error

    def receive_into(self, view: memoryview, first_byte_ms: int | None = -1) -> None:
        """Fill ``view``; ``first_byte_ms`` None waits for ever for its first byte."""
        patience = self._stall_ms if first_byte_ms == -1 else first_byte_ms
        while view:
            try:
                received = self._sock.recv_into(view)
            except BlockingIOError:
                self._wait(select.POLLIN, patience)
                continue
            if received == 0:
                raise LinkBroken("the peer closed the link")
            view, patience = view[received:], self._stall_ms

    @property
    def host(self) -> str:
        """This end's address."""
        return str(self._sock.getsockname()[0])

    @property
    def peer_host(self) -> str:
        return str(self._sock.getpeername()[0])

    def has_news(self) -> bool:
        """A message, or the end, waits to be read."""
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        return bool(poller.poll(0))

    def _wait(self, events: int, timeout_ms: int | None) -> None:
        poller = select.poll()
        poller.register(self._sock, events)
        if not poller.poll(timeout_ms):
            raise LinkBroken(f"the peer was silent for {timeout_ms} ms inside a message")

    def send_fd(self, fd: int) -> None:
        socket.send_fds(self._sock, [b"F"], [fd])

    def receive_fd(self) -> int:
        self._wait(select.POLLIN, self._stall_ms)
        _, fds, _, _ = socket.recv_fds(self._sock, 1, 1)
        if not fds:
            raise LinkBroken("the peer passed no memory")
        return fds[0]

    def shutdown(self) -> None:
        """Wakes both threads; the descriptor stays until close(), so it cannot be reused."""
        self.is_down = True
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # already gone at the other end

    def close(self) -> None:
        self._sock.close()


def _prepare_tcp(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A host that vanished says nothing: find out in about half a minute.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
