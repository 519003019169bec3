"""Places for rows in caches of a few sizes, so that a short row is not stored and read as a long one.

A row begins in the smallest cache that holds it and moves on when it outgrows that. Rows of a size lie side by side:
attention reads them as one block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from instil.model.cache import Cache
from instil.model.decoder import Decoder

SMALLEST = 128  # positions; every next size is twice as large


def most_held(length: int) -> int:
    """How many positions a row takes at most while it grows to ``length``: those of two slots, when it moves.

    >>> [most_held(length) for length in (100, 200, 300, 600)]
    [100, 256, 512, 1024]
    """
    size = SMALLEST
    while 2 * size < length:
        size *= 2
    return length if length <= SMALLEST else max(length, 2 * size)


class Slot:
    """Where a row's keys and values are; it changes when others leave."""

    __slots__ = ("cache", "place")

    def __init__(self, cache: Cache, place: int) -> None:
        self.cache, self.place = cache, place

    @property
    def filled(self) -> int:
        """Positions computed so far."""
        return self.cache.lengths[self.place]

    @filled.setter
    def filled(self, length: int) -> None:
        self.cache.lengths[self.place] = length


class Slots:
    """All slots of one engine.

    Args:
        decoder: whose keys and values they hold.
        keep: the cache that was emptied last, so that the next rows of its size lie where those before did.
    """

    def __init__(self, decoder: Decoder, *, keep: bool = False) -> None:
        self._decoder, self._keep = decoder, keep
        self._taken: dict[int, tuple[Cache, list[Slot]]] = {}

    def size(self, length: int) -> int:
        """Positions of the slot that so many tokens get."""
        size = SMALLEST
        while size < length:
            size *= 2
        return min(size, max(self._decoder.spec.context, length))

    def reserve(self, lengths: Iterable[int]) -> None:
        """Make room for rows of so many tokens at once, beside those that are there."""
        for size, rows in Counter(map(self.size, lengths)).items():
            cache, _ = self._of(size)
            cache.reserve(cache.rows + rows)

    def take(self, length: int) -> Slot:
        """A slot for a row of so many tokens, empty."""
        cache, slots = self._of(self.size(length))
        slot = Slot(cache, cache.add())
        slots.append(slot)
        return slot

    def widen(self, slot: Slot, length: int) -> None:
        """Make sure that a row of so many tokens has room, if need be elsewhere."""
        if length <= slot.cache.length:
            return
        wider = self.take(length)
        slot.cache.copy(slot.place, wider.cache, wider.place, slot.filled)
        self._taken[wider.cache.length][1][wider.place] = slot
        self._empty(slot)
        slot.cache, slot.place = wider.cache, wider.place

    def release(self, slot: Slot) -> None:
        """Give a slot back."""
        self._empty(slot)

    def _of(self, size: int) -> tuple[Cache, list[Slot]]:
        if size not in self._taken:
            self._taken[size] = (self._decoder.new_cache(size), [])
        return self._taken[size]

    def _empty(self, slot: Slot) -> None:
        cache, slots = self._taken[slot.cache.length]
        cache.drop(slot.place)
        last = slots.pop()
        if last is not slot:
            slots[slot.place] = last
            last.place = slot.place
        if not slots:
            emptied = [length for length, (_, others) in self._taken.items() if not others]
            for length in emptied:
                if not self._keep or length != cache.length:
                    del self._taken[length]
