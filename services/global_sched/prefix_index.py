"""Which instance holds which prompt prefixes: a bounded index of chunk hashes. Pure.

A chunk's hash covers everything before it, so the number of leading chunks an instance holds is
the length of the shared prefix.
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_GROUPS = 4096


class PrefixIndex:
    """Chunks per instance, and for each chunk who holds it (a bit for each instance): a look-up
    costs one step for each chunk that anybody holds, however many instances there are.

    Beyond ``max_chunks`` an instance's oldest are dropped.
    """

    def __init__(self, max_chunks: int = 65_536) -> None:
        if max_chunks < 1:
            raise ValueError("max_chunks must be positive")
        self._max_chunks = max_chunks
        self._chunks: dict[str, dict[bytes, None]] = {}
        self._holders: dict[bytes, int] = {}
        self._bits: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._groups: dict[int, tuple[str, ...]] = {}

    def add(self, instance_id: str, chunks: Iterable[bytes]) -> None:
        """The instance holds these chunks now."""
        held = self._chunks.setdefault(instance_id, {})
        bit, holders = self._bit(instance_id), self._holders
        for chunk in chunks:
            held.pop(chunk, None)
            held[chunk] = None
            holders[chunk] = holders.get(chunk, 0) | bit
        if len(held) > self._max_chunks:
            oldest = iter(list(held))
            self.remove(instance_id, [next(oldest) for _ in range(len(held) - self._max_chunks)])

    def remove(self, instance_id: str, chunks: Iterable[bytes]) -> None:
        """The instance dropped these chunks."""
        held = self._chunks.get(instance_id)
        if held is None:
            return
        bit = self._bits[instance_id]
        for chunk in chunks:
            if chunk in held:
                del held[chunk]
                self._drop(chunk, bit)

    def forget(self, instance_id: str) -> None:
        """The instance left, or reset its cache."""
        held = self._chunks.pop(instance_id, None)
        if held is None:
            return
        bit = self._bits.pop(instance_id)
        del self._names[bit]
        self._groups.clear()
        for chunk in held:
            self._drop(chunk, bit)

    def num_chunks(self, instance_id: str) -> int:
        return len(self._chunks.get(instance_id, ()))

    @property
    def num_held(self) -> int:
        """Chunks over all instances."""
        return sum(len(held) for held in list(self._chunks.values()))

    def leading(self, chunks: Iterable[bytes], each: int = 1) -> dict[str, int]:
        """How many of a prompt's leading chunks each instance holds, a chunk counting ``each``;
        those with none left out."""
        found: dict[str, int] = {}
        depth, holding, who = 0, -1, self._holders.get
        for chunk in chunks:
            still = who(chunk, 0) & holding
            if still != holding:
                if depth:
                    self._note(found, holding & ~still, depth)
                if not still:
                    return found
                holding = still
            depth += each
        if depth:
            self._note(found, holding, depth)
        return found

    def _note(self, found: dict[str, int], bits: int, depth: int) -> None:
        found.update(dict.fromkeys(self._groups.get(bits) or self._group(bits), depth))

    def _group(self, bits: int) -> tuple[str, ...]:
        """Whose bits these are; kept, as the same instances share the same beginnings."""
        if len(self._groups) >= MAX_GROUPS:
            self._groups.clear()
        names = tuple([name for bit, name in self._names.items() if bit & bits])
        self._groups[bits] = names
        return names

    def _drop(self, chunk: bytes, bit: int) -> None:
        left = self._holders[chunk] & ~bit
        if left:
            self._holders[chunk] = left
        else:
            del self._holders[chunk]

    def _bit(self, instance_id: str) -> int:
        bit = self._bits.get(instance_id)
        if bit is None:
            bit = 1
            while bit in self._names:  # the lowest that is free: they stay as few as instances
                bit <<= 1
            self._bits[instance_id], self._names[bit] = bit, instance_id
            self._groups.clear()
        return bit
