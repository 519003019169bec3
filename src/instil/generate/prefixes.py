"""Beginnings of sequences that were computed before: preambles of a template, and conversations so far.

They belong to the weights that computed them, and are forgotten when those change. The least recently used go first
when their memory is needed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from instil.model.cache import Cache, position_bytes
from instil.model.decoder import Decoder


class PrefixCache:
    """Keys and values of beginnings, found again by their ids.

    Args:
        decoder: whose they are.
        limit: bytes that they may take together.
    """

    def __init__(self, decoder: Decoder, limit: int) -> None:
        self._decoder, self.limit = decoder, limit
        self._each = position_bytes(decoder.spec, decoder.embed.weight.dtype)
        self._held: OrderedDict[tuple[int, ...], Cache] = OrderedDict()
        self._weights = self._version()

    @property
    def bytes(self) -> int:
        """What they take."""
        return sum(map(len, self._held)) * self._each

    def __len__(self) -> int:
        return len(self._held)

    def keep(self, ids: Sequence[int], cache: Cache, row: int) -> None:
        """Remember a beginning, of which a row of a cache has the keys and values.

        One that an older, longer one covers is not held twice, and takes the place of those that it covers.
        """
        self._check()
        key, length = tuple(ids), len(ids)
        if not key or length * self._each > self.limit:
            return
        covered_by, shared = self._nearest(key)
        if covered_by is not None and shared == length:
            self._held.move_to_end(covered_by)
            return
        for shorter in [held for held in self._held if key[: len(held)] == held]:
            del self._held[shorter]
        own = self._decoder.new_cache(length)
        own.add()
        cache.copy(row, own, 0, length)
        self._held[key] = own
        while self.bytes > self.limit:
            self._held.popitem(last=False)

    def fill(self, ids: Sequence[int], cache: Cache, row: int) -> int:
        """Put what is known of these ids into a row of a cache; how many positions that is.

        The last id is always left to compute, since what follows it is wanted.
        """
        self._check()
        found, shared = self._nearest(ids)
        shared = min(shared, len(ids) - 1)
        if found is None or shared < 1:
            return 0
        self._held.move_to_end(found)
        self._held[found].copy(0, cache, row, shared)
        return shared

    def _check(self) -> None:
        if self._weights != self._version():
            self._held.clear()
            self._weights = self._version()

    def _version(self) -> tuple[tuple[int, int], ...]:
        """What changes with the weights: where they are, and how often they were written."""
        if self._decoder.in_parts:  # gathered anew for each pass; no engine lives longer than they are what they are
            return ()
        return tuple(
            (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version)
            for parameter in self._decoder.parameters()
        )

    def _nearest(self, ids: Sequence[int]) -> tuple[tuple[int, ...] | None, int]:
        """The beginning that shares most ids with these, and how many."""
        best, most = None, 0
        for held in self._held:
            shared = next((at for at, (a, b) in enumerate(zip(held, ids, strict=False)) if a != b), None)
            shared = min(len(held), len(ids)) if shared is None else shared
            if shared > most:
                best, most = held, shared
        return best, most
