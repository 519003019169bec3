"""Passes in which each row gets one token, replayed: what a GPU does for them is recorded once for so many rows.

A small model's pass over a few tokens is hundreds of operations, each of which a GPU does in less time than the host
takes to ask for it. A CUDA graph asks for all of them at once. It reads and writes the same memory each time, so ids,
positions and scores have buffers that stay, rows are counted in powers of two, and a pass is recorded anew where the
cache has moved. Elsewhere the same pass is computed without being recorded.

``INSTIL_GRAPHS=no`` has every pass computed as it comes.

Shape suffixes: R rows · B rows that are computed, R and some that nobody uses · V vocabulary.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from instil.batches import Batch
from instil.errors import SettingsError
from instil.layouts import Grid
from instil.machine import sent
from instil.model.cache import Cache, Part
from instil.model.decoder import Decoder
from instil.model.standing import Standing

WORTH_IT = 16  # passes to come for which recording one pays


def replays(decoder: Decoder) -> bool:
    """Whether passes are to be replayed: on a GPU that has all of the weights, unless ``INSTIL_GRAPHS=no`` is set.

    What gathers parts of weights from other processes is no part of a recording.

    Raises:
        SettingsError: it is set to something else.
    """
    asked = os.environ.get("INSTIL_GRAPHS", "")
    if asked not in ("", "yes", "no"):
        raise SettingsError(f"INSTIL_GRAPHS is {asked!r}; wanted yes or no")
    parts = any(hasattr(parameter, "to_local") for parameter in decoder.parameters())
    return decoder.device.type == "cuda" and asked != "no" and not parts


class Replay:
    """The passes that were recorded.

    Args:
        decoder: its weights may change as long as they stay where they are; else they have to be looked at (`look`).
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._passes: dict[tuple[int, int], _Pass] = {}  # by length of the cache and rows
        self._weights = self._places()

    def look(self) -> None:
        """Forget what was recorded if weights are elsewhere now."""
        if self._weights != (now := self._places()):
            self._passes, self._weights = {}, now

    def suits(self, part: Part, to_come: int) -> bool:
        """Whether this can be replayed, all rows of a cache and a token for each, and is worth being recorded."""
        every = part.rows == tuple(range(part.cache.rows)) and set(part.lengths) == {1}
        return every and (to_come >= WORTH_IT or self._known(part.cache, len(part.rows)) is not None)

    def logits(self, part: Part, ids: Sequence[int]) -> Tensor:
        """Scores of what comes after these ids, [R, V], which are valid until the next call."""
        cache, rows = part.cache, len(part.rows)
        found = self._known(cache, rows)
        if found is None:
            found = self._passes[cache.length, _padded(cache, rows)] = _Pass(self._decoder, cache, _padded(cache, rows))
        scores_BV = found(cache, ids, cache.lengths)
        for row in part.rows:
            cache.lengths[row] += 1
        return scores_BV[:rows]

    def _known(self, cache: Cache, rows: int) -> _Pass | None:
        found = self._passes.get((cache.length, _padded(cache, rows)))
        return found if found is not None and found.is_of(cache) else None

    def _places(self) -> tuple[int, ...]:
        return tuple(parameter.data_ptr() for parameter in self._decoder.parameters())


def _padded(cache: Cache, rows: int) -> int:
    """How many rows are computed for so many: the next power of two, as far as the cache has room."""
    return min(1 << (rows - 1).bit_length(), cache.room)


class _Pass:
    """One pass for the first rows of a cache, with its buffers."""

    def __init__(self, decoder: Decoder, cache: Cache, rows: int) -> None:
        self._decoder, self._of = decoder, weakref.ref(cache.keys[0])
        device = decoder.device
        self._given_2B = torch.zeros(2, rows, dtype=torch.long, device=device)  # ids, and where they stand
        self._rows_B = torch.arange(rows, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._scores_BV: Tensor | None = None
        self._records = device.type == "cuda" and torch.cuda.is_available()

    def is_of(self, cache: Cache) -> bool:
        """Whether this cache is still where it was."""
        return self._of() is cache.keys[0]

    def __call__(self, cache: Cache, ids: Sequence[int], positions: Sequence[int]) -> Tensor:
        rest = [0] * (self._given_2B.shape[1] - len(ids))  # rows that nobody uses, from whose beginning nothing is read
        given_2B = torch.tensor([[*ids, *rest], [*positions, *rest]])
        self._given_2B.copy_(sent(given_2B, self._given_2B.device))
        if not self._records:
            return self._compute(cache)
        if self._graph is None or self._scores_BV is None:
            self._graph, self._scores_BV = self._record(cache)
        self._graph.replay()
        return self._scores_BV

    def _compute(self, cache: Cache) -> Tensor:
        ids_B, positions_B = self._given_2B
        batch = Batch.untargeted(ids_B, positions_B, self._rows_B, Grid(len(ids_B), 1))
        return self._decoder.logits(self._decoder(batch, attend=Standing(cache, positions_B)))

    def _record(self, cache: Cache) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """What the device does in this pass; it is computed before, and in replaying it is computed again."""
        device = self._given_2B.device
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):  # libraries and tables are made ready, which must not be part of it
            self._compute(cache)
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            scores_BV = self._compute(cache)
        return graph, scores_BV
