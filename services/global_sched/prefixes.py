"""What the scheduler knows of the instances' prefix caches, from their updates. Pure."""

from __future__ import annotations

from services.global_sched.prefix_index import PrefixIndex
from shared.prefixes import chunk_hashes, chunk_tokens, unpack_hashes
from shared.schemas.prefix import PrefixUpdate
from shared.schemas.registry import InstanceRecord
from shared.schemas.request import GenerationRequest

ASK_AGAIN_S = 1.0


class PrefixKnowledge:
    """Follows every instance's updates by their numbers; one that was missed makes what is known
    of the instance worthless until it has told the whole.

    Instances whose chunks have another length than those of the first are not followed: in one
    pool they could not hand over to each other either.
    """

    def __init__(self, index: PrefixIndex | None = None) -> None:
        self.index = index or PrefixIndex()
        self._sequences: dict[str, int] = {}
        self._asked_s: dict[str, float] = {}
        self._chunk_tokens = 0
        self._ids: set[str] = set()

    def on_record(
        self,
        instance_id: str,
        old: InstanceRecord | None,
        new: InstanceRecord | None,
        now_s: float,
    ) -> bool:
        """An instance came, changed or left; True: ask it for the whole."""
        if old is not None and new is not None and old.started_s == new.started_s:
            return False
        self._forget(instance_id)
        if new is None:
            return False
        if not self._ids:
            self._chunk_tokens = chunk_tokens(new.geometry.block_size)
        self._ids.add(instance_id)
        return self._may_ask(instance_id, now_s)

    def on_update(self, update: PrefixUpdate, now_s: float) -> bool:
        """An instance told of changes; True: something was missed, ask it for the whole."""
        name = update.instance_id
        if name not in self._ids or update.chunk_tokens != self._chunk_tokens:
            return False
        follows = self._sequences.get(name, -1) + 1 == update.sequence
        if not (update.is_whole or follows):
            self.index.forget(name)
            self._sequences.pop(name, None)
            return self._may_ask(name, now_s)
        if update.is_whole:
            self.index.forget(name)
        self._sequences[name] = update.sequence
        self.index.remove(name, unpack_hashes(update.removed))
        self.index.add(name, unpack_hashes(update.added))
        return False

    def cached_tokens(self, request: GenerationRequest) -> dict[str, int]:
        """Leading tokens of the request each instance holds; instances with none are left out."""
        if not self._sequences:
            return {}
        tokens = request.prompt_token_ids + request.output_token_ids
        length = self._chunk_tokens
        return self.index.leading(chunk_hashes(tokens, length, request.cache_salt), length)

    def _forget(self, instance_id: str) -> None:
        self.index.forget(instance_id)
        self._ids.discard(instance_id)
        self._sequences.pop(instance_id, None)
        self._asked_s.pop(instance_id, None)

    def _may_ask(self, instance_id: str, now_s: float) -> bool:
        if now_s - self._asked_s.get(instance_id, -ASK_AGAIN_S) < ASK_AGAIN_S:
            return False
        self._asked_s[instance_id] = now_s
        return True
