"""What the sending and the receiving half of a port have in common."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.kv_transfer.links.events import News
from services.kv_transfer.links.frames import Message
from services.kv_transfer.links.tuning import LinkTuning

Kept = TypeVar("Kept")


class Mailable(Protocol):
    def post(self, job: Message) -> bool: ...


Mail = list[tuple[Mailable, Message]]


@dataclass(frozen=True)
class LinkStats:
    """One live link; ``busy_s`` is time with a chunk under way."""

    peer: str
    direction: str  # "out" or "in"
    transport: str
    num_bytes: int
    num_chunks: int
    busy_s: float


class Memory(Generic[Kept]):
    """The last ``limit`` handoffs that ended, so that stragglers can be told from newcomers."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def keep(self, handoff_id: str, what: Kept) -> None:
        self._kept[handoff_id] = what
        self._kept.move_to_end(handoff_id)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)

    def get(self, handoff_id: str) -> Kept | None:
        return self._kept.get(handoff_id)


class Half:
    """State under one lock; messages and the wake-up go out after it is released."""

    def __init__(self, news: News, tuning: LinkTuning, kick: Callable[[float], None]) -> None:
        self._news = news
        self._tuning = tuning
        self._kick = kick  # tells the timekeeper of a deadline (monotonic seconds)
        self._lock = threading.Lock()

    @contextmanager
    def _changing(self) -> Iterator[Mail]:
        mail: Mail = []
        with self._lock:
            yield mail
        for link, message in mail:
            link.post(message)
        self._news.announce()
