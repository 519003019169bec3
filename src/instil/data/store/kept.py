"""What is known of all rows of a store without looking at one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instil.data.encoding import mask_lines
from instil.data.splits import Part
from instil.data.store.build import size_line
from instil.data.store.examples import ExampleStore
from instil.data.store.tokens import SPELLINGS, TokenStore
from instil.data.subset import Subset
from instil.records import Example

AT_ONCE = 1 << 18  # rows looked at together


@dataclass(frozen=True, slots=True)
class Kept:
    """A store of encoded rows, of which some are in each part."""

    tokens: TokenStore

    def spelt(self) -> tuple[list[int], list[int]]:
        """Rows that the vocabulary cannot spell, and those that the tokenizer alters."""
        kinds, rows = self.tokens.columns["spelling"], self.tokens.columns["row"]
        misspelt, altered = (rows[kinds == SPELLINGS.index(kind)].tolist() for kind in ("misspelt", "altered"))
        return misspelt, altered

    def mask_notes(self, rows: Mapping[Part, Sequence[Any]]) -> list[str]:
        """As `instil.data.encoding.mask_notes`, without looking at a row."""
        columns, told = self.tokens.columns, list[Any]()
        for name in ("straddling", "left_out"):
            odd = np.zeros(0, np.int64)
            if (columns[name] > 0).any():  # seldom
                every = np.concatenate([np.arange(len(self.tokens))[_numbers(rows[part])] for part in rows])
                odd = every[columns[name][every] > 0]
            told += [columns["row"][odd].tolist(), int(columns[name][odd].sum())]
        return mask_lines(*told)

    def repeated(self, rows: Mapping[Part, Sequence[Any]]) -> int:
        """How many test and validation rows ask what a training row asks."""
        prompts = {part: self.tokens.columns["prompt"][_numbers(rows[part])] for part in rows}
        held_out = np.sort(np.concatenate([found for part, found in prompts.items() if part != "train"]))
        if not len(held_out):
            return 0
        train, asked = prompts["train"], np.zeros(len(held_out), bool)
        for start in range(0, len(train), AT_ONCE):  # looked for in the fewer ones, some at a time
            some = np.sort(train[start : start + AT_ONCE])
            at = np.searchsorted(held_out, some)
            at[at == len(held_out)] = 0
            asked[at[held_out[at] == some]] = True
        first = np.flatnonzero(asked)  # of equal ones
        return int((np.searchsorted(held_out, held_out[first], side="right") - first).sum())

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Where the rows lie, and how to be rid of them."""
        folders = [examples.folder] if isinstance(examples, ExampleStore) else []
        return [size_line(*folders, self.tokens.folder)]


def in_store(rows: Mapping[Part, Sequence[Any]]) -> Kept | None:
    """The store that the rows of all parts lie in, if they do."""
    found = rows["train"]
    return Kept(found.rows) if isinstance(found, Subset) and isinstance(found.rows, TokenStore) else None


def _numbers(rows: Sequence[Any]) -> Any:
    assert isinstance(rows, Subset), "all parts lie in one store"
    numbers = rows.numbers
    return slice(numbers.start, numbers.stop, numbers.step) if isinstance(numbers, range) else numbers
