"""From the KV blocks an engine's prefix cache stores and drops to the prefix chunks it holds. Pure.

A chunk is held as long as its last block is: caches drop the end of a prefix before its beginning.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from shared.prefixes import blocks_per_chunk, next_hash, root_hash
from shared.schemas.message import pack_tokens


@dataclass(slots=True)
class PrefixChanges:
    """What entered and left since the last look, in order; ``cleared``: all went first."""

    added: list[bytes] = field(default_factory=list)
    removed: list[bytes] = field(default_factory=list)
    cleared: bool = False

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.cleared)


@dataclass(slots=True)
class _Block:
    """One cached block content: where it stands in its prefix, and how often it is stored."""

    index: int
    chunk: bytes
    """Hash of the last whole chunk up to here."""
    partial: bytes
    """Tokens behind that chunk."""
    copies: int = 0


class PrefixChunks:
    """Follows one cache; holds one entry for each block content in it."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._blocks_per_chunk = blocks_per_chunk(block_size)
        self._blocks: dict[Hashable, _Block] = {}
        self._held: set[bytes] = set()
        self._changes = PrefixChanges()

    def __len__(self) -> int:
        return len(self._blocks)

    def stored(
        self,
        names: Sequence[Hashable],
        parent: Hashable | None,
        token_ids: Sequence[int],
        cache_salt: str | None = None,
    ) -> None:
        """Blocks that follow each other entered the cache, behind ``parent`` (None: at the start).

        ``names`` are the engine's own; two copies of the same content have the same name.
        """
        before = self._blocks.get(parent) if parent is not None else None
        if parent is not None and before is None:
            return  # its beginning is not known, so it cannot be named
        if before is None:
            before = _Block(0, root_hash(cache_salt), b"")
        size = self._block_size
        for number, name in enumerate(names):
            known = self._blocks.get(name)
            if known is None:
                tokens = pack_tokens(token_ids[number * size : (number + 1) * size])
                known = self._blocks[name] = self._follow(before, tokens)
            known.copies += 1
            before = known

    def removed(self, names: Sequence[Hashable]) -> None:
        """One copy each left the cache."""
        for name in names:
            known = self._blocks.get(name)
            if known is None:
                continue
            known.copies -= 1
            if known.copies <= 0:
                del self._blocks[name]
                if self._ends_chunk(known):
                    self._held.discard(known.chunk)
                    self._changes.removed.append(known.chunk)

    def cleared(self) -> None:
        """Nothing is in the cache any more."""
        self._blocks.clear()
        self._held.clear()
        self._changes = PrefixChanges(cleared=True)

    def take(self) -> PrefixChanges | None:
        """Changes since the last call; None: there were none. What came and went is left out."""
        if not self._changes:
            return None
        changes, self._changes = self._changes, PrefixChanges()
        held = self._held
        changes.added = [chunk for chunk in dict.fromkeys(changes.added) if chunk in held]
        changes.removed = [chunk for chunk in dict.fromkeys(changes.removed) if chunk not in held]
        return changes

    def _follow(self, before: _Block, tokens: bytes) -> _Block:
        block = _Block(before.index + 1, before.chunk, before.partial + tokens)
        if self._ends_chunk(block):
            block.chunk, block.partial = next_hash(before.chunk, block.partial), b""
            self._held.add(block.chunk)
            self._changes.added.append(block.chunk)
        return block

    def _ends_chunk(self, block: _Block) -> bool:
        return block.index % self._blocks_per_chunk == 0
