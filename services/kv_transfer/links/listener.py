"""The port's own thread: accepts links and keeps the time of both halves."""

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence

from services.kv_transfer.links.tuning import LinkTuning

log = logging.getLogger("dynaserve.kv_transfer.links")
BACKLOG = 128
RETRY_ACCEPT_MS = 100


class Listener:
    """``expire`` runs at every deadline that was kicked in, and says when the next one is."""

    def __init__(
        self,
        sockets: dict[str, socket.socket],
        accept: Callable[[socket.socket, str], None],
        expire: Sequence[Callable[[float], float]],
        tuning: LinkTuning,
    ) -> None:
        self._sockets = {sock.fileno(): (name, sock) for name, sock in sockets.items()}
        self._accept = accept
        self._expire = expire
        self._tuning = tuning
        self._rouse, self._roused = socket.socketpair()
        self._rouse.setblocking(False)
        self._roused.setblocking(False)
        self._lock = threading.Lock()
        self._due = float("inf")
        self._open = True
        self._thread = threading.Thread(target=self._live, name="kv-port", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def kick(self, deadline: float) -> None:
        """Be up by then (monotonic seconds)."""
        with self._lock:
            if deadline >= self._due:
                return
            self._due = deadline
        self._wake()

    def close(self) -> None:
        self._open = False
        self._wake()
        self._thread.join(self._tuning.join_timeout_s)
        for _, sock in self._sockets.values():
            sock.close()
        self._rouse.close()
        self._roused.close()

    def _wake(self) -> None:
        try:
            self._rouse.send(b"!")
        except OSError:
            pass  # it has enough to wake up for already, or is closed

    def _live(self) -> None:
        poller = select.poll()
        poller.register(self._roused, select.POLLIN)
        for fd in self._sockets:
            poller.register(fd, select.POLLIN)
        while self._open:
            for fd, _ in poller.poll(self._patience_ms()):
                self._serve(fd)
            self._keep_time()

    def _patience_ms(self) -> int | None:
        with self._lock:
            left_s = self._due - time.monotonic()
        return None if left_s == float("inf") else max(0, int(left_s * 1000) + 1)

    def _serve(self, fd: int) -> None:
        if fd == self._roused.fileno():
            self._roused.recv(4096)
            return
        name, sock = self._sockets[fd]
        try:
            peer, _ = sock.accept()
        except OSError as error:  # out of descriptors, or the peer is gone already
            log.warning("cannot accept a KV link: %s", error)
            select.poll().poll(RETRY_ACCEPT_MS)
            return
        self._accept(peer, name)

    def _keep_time(self) -> None:
        now = time.monotonic()
        with self._lock:
            if self._due > now:
                return
            self._due = float("inf")
        # A deadline kicked in from here on sets its own due time; take the earlier.
        due = min(expire(now) for expire in self._expire)
        with self._lock:
            self._due = min(self._due, due)


def listen_tcp(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, 0), family=family, backlog=BACKLOG)
    sock.setblocking(False)
    return sock


def listen_unix(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind("\0" + name)
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock
