"""vLLM's KV-cache events, followed in place: an event publisher that keeps the prefix chunks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.distributed.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventPublisher,
    KVCacheEvent,
    KVEventBatch,
)
from vllm.v1.core.sched.scheduler import Scheduler

from services.gpu_instance.prefix_chunks import PrefixChunks


class PrefixEvents(EventPublisher):
    """Stands where vLLM has its publisher, and hands everything on to that one.

    Models with several kinds of KV cache are followed by their first: a prefix is held when all
    are, and the first is the one that keeps everything.
    """

    def __init__(self, published: EventPublisher, block_size: int) -> None:
        super().__init__()
        self._published = published
        self._block_size = block_size
        self.chunks = PrefixChunks(block_size)

    @classmethod
    def follow_cache_of(cls, scheduler: Scheduler) -> PrefixEvents:
        """From now on what the scheduler publishes goes through here."""
        size = scheduler.vllm_config.cache_config.block_size
        events = cls(scheduler.kv_event_publisher, size)
        scheduler.kv_event_publisher = events
        return events

    def publish(self, events: KVEventBatch) -> None:
        self.follow(events.events)
        self._published.publish(events)

    def follow(self, events: Iterable[KVCacheEvent]) -> None:
        for event in events:
            match event:
                case BlockStored():
                    if not event.group_idx and event.block_size == self._block_size:
                        names, parent = event.block_hashes, event.parent_block_hash
                        self.chunks.stored(names, parent, event.token_ids, _salt(event))
                case BlockRemoved():
                    if not event.group_idx:
                        self.chunks.removed(event.block_hashes)
                case AllBlocksCleared():
                    self.chunks.cleared()

    def shutdown(self) -> None:
        self._published.shutdown()

    def get_publisher_config(self) -> Any:
        return self._published.get_publisher_config()


def _salt(event: BlockStored) -> str | None:
    """The request's cache salt is part of its first block's key, and the only text in it."""
    first = event.extra_keys[0] if event.extra_keys else None
    return next((key for key in first or () if isinstance(key, str)), None)
