"""The prefix cache of the simulated engine: whole chunks of prompts, least recently used ones go.

Not modelled: cached prefixes take no blocks of their own, nor do requests share blocks; what is
decoded is not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import takewhile

from services.gpu_instance.engine.simulated_request import SimulatedRequest
from services.gpu_instance.prefix_chunks import PrefixChanges
from shared.prefixes import BYTES_PER_TOKEN, chunk_hashes, chunk_tokens


class SimulatedPrefixes:
    """Invariant: at most as many tokens as the engine has KV for."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._chunk_tokens = chunk_tokens(block_size)
        self._max_chunks = num_blocks * block_size // self._chunk_tokens
        self._held: OrderedDict[bytes, None] = OrderedDict()
        self._changes = PrefixChanges()

    def cached_tokens(self, request: SimulatedRequest) -> int:
        """Leading tokens that need no computing; one of those it has to compute always does."""
        most = min(request.num_prompt_tokens, request.end) - 1
        held = list(takewhile(self._held.__contains__, self._names(request, most)))
        for name in held:
            self._held.move_to_end(name)
        return self._chunk_tokens * len(held)

    def keep(self, request: SimulatedRequest) -> None:
        """The request's prompt is computed, as far as it is this segment's."""
        for name in self._names(request, min(request.num_prompt_tokens, request.computed)):
            if name not in self._held:
                self._changes.added.append(name)
            self._held[name] = None
            self._held.move_to_end(name)
        while len(self._held) > self._max_chunks:
            self._changes.removed.append(self._held.popitem(last=False)[0])

    def clear(self) -> None:
        self._held.clear()
        self._changes = PrefixChanges(cleared=True)

    def take(self) -> PrefixChanges | None:
        """Changes since the last call; None: there were none."""
        changes, self._changes = self._changes, PrefixChanges()
        if not changes:
            return None
        changes.added = [name for name in dict.fromkeys(changes.added) if name in self._held]
        changes.removed = [name for name in changes.removed if name not in self._held]
        return changes

    def _names(self, request: SimulatedRequest, num_tokens: int) -> list[bytes]:
        asked = request.segment.request
        tokens = asked.prompt_token_ids[: BYTES_PER_TOKEN * max(num_tokens, 0)]
        return list(chunk_hashes(tokens, self._chunk_tokens, asked.cache_salt))
