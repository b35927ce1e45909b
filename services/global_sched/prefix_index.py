"""Which instance holds which prompt prefixes: a bounded index of block hashes.

A block's hash covers everything before it, so the number of leading blocks an instance holds is
the length of the shared prefix.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class PrefixIndex:
    """Block hashes per instance, least recently used ones dropped beyond ``max_blocks`` each."""

    def __init__(self, block_tokens: int = 16, max_blocks: int = 65_536) -> None:
        if block_tokens < 1 or max_blocks < 1:
            raise ValueError("block_tokens and max_blocks must be positive")
        self.block_tokens = block_tokens
        self._max_blocks = max_blocks
        self._blocks: dict[str, OrderedDict[int, None]] = {}

    def add(self, instance_id: str, hashes: Iterable[int]) -> None:
        """The instance holds these blocks now."""
        blocks = self._blocks.setdefault(instance_id, OrderedDict())
        for block_hash in hashes:
            blocks[block_hash] = None
            blocks.move_to_end(block_hash)
        while len(blocks) > self._max_blocks:
            blocks.popitem(last=False)

    def remove(self, instance_id: str, hashes: Iterable[int]) -> None:
        """The instance dropped these blocks."""
        blocks = self._blocks.get(instance_id)
        for block_hash in hashes if blocks else ():
            assert blocks is not None
            blocks.pop(block_hash, None)

    def forget(self, instance_id: str) -> None:
        """The instance left, or reset its cache."""
        self._blocks.pop(instance_id, None)

    def num_blocks(self, instance_id: str) -> int:
        return len(self._blocks.get(instance_id, ()))

    def cached_tokens(self, hashes: Sequence[int]) -> dict[str, int]:
        """Leading tokens of the prompt each instance holds; instances with none are left out."""
        found: dict[str, int] = {}
        for instance_id, blocks in self._blocks.items():
            leading = 0
            for block_hash in hashes:
                if block_hash not in blocks:
                    break
                leading += 1
            if leading:
                found[instance_id] = leading * self.block_tokens
        return found
