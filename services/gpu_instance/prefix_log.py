"""Which prefix chunks the engine holds, as the pool was told. Pure."""

from __future__ import annotations

from services.gpu_instance.prefix_chunks import PrefixChanges
from shared.prefixes import pack_hashes
from shared.schemas.prefix import PrefixUpdate

MAX_TOLD = 65_536
"""Chunks in one message: half a megabyte, and four million tokens. The newest are told."""


class PrefixLog:
    """Numbers the updates, so that whoever missed one notices and asks for the whole."""

    def __init__(self, instance_id: str, chunk_tokens: int) -> None:
        self._instance_id = instance_id
        self._chunk_tokens = chunk_tokens
        self._held: dict[bytes, None] = {}
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._held)

    def apply(self, changes: PrefixChanges) -> PrefixUpdate:
        """The update that tells of ``changes``."""
        if changes.cleared:
            self._held.clear()
        for chunk in changes.removed:
            self._held.pop(chunk, None)
        self._held.update(dict.fromkeys(changes.added))
        if changes.cleared:
            return self.whole()
        return self._update(changes.added, changes.removed)

    def whole(self) -> PrefixUpdate:
        """Everything, for those that do not know it."""
        return self._update(list(self._held), [], is_whole=True)

    def _update(
        self, added: list[bytes], removed: list[bytes], is_whole: bool = False
    ) -> PrefixUpdate:
        self._sequence += 1
        return PrefixUpdate(
            instance_id=self._instance_id,
            sequence=self._sequence,
            chunk_tokens=self._chunk_tokens,
            is_whole=is_whole,
            added=pack_hashes(added[-MAX_TOLD:]),
            removed=pack_hashes(removed[-MAX_TOLD:]),
        )
