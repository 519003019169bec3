"""Preference pairs in a store: as texts, and as two rows of ids each.

The store of examples has the rejected answer of each beside the chosen one (`examples`). Both are encoded by the same
process, and lie in one batch: the row with the rejected answer under the same names, with ``rejected.`` before them.

Shape suffixes: R pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from instil.data.encoding import encode_many, header_begins
from instil.data.store.examples import REJECTED, WRITTEN, ExampleStore
from instil.data.store.shards import BATCH, column_of
from instil.data.store.tokens import PAIRED, TokenStore, columns_of, columns_of_texts, mapped_column, seen_in
from instil.data.subset import Lazy
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.records import Encoded, EncodedPair, Example, Pair

if TYPE_CHECKING:
    import pyarrow

    from instil.settings.options import Scored, TrainOn, Turns


class PairStore(Lazy[Pair]):
    """The pairs of a complete store.

    Attributes:
        examples: the same as examples whose output is the chosen answer.
    """

    def __init__(self, examples: ExampleStore) -> None:
        self.examples = examples
        self._written = ExampleStore(examples.folder, WRITTEN)
        self._rejected = ExampleStore(examples.folder, REJECTED)
        self._order_R: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None  # row numbers, and where they are

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return self.subset(range(len(self))[at])
        return Pair(self._written[at], self.examples[at].output, self._rejected[at].output)

    def answers(self, example: Example) -> tuple[str, str]:
        """Both answers of an example of theirs."""
        if self._order_R is None:
            row_R = self.examples.row_numbers
            order_R = np.argsort(row_R, kind="stable")
            self._order_R = row_R[order_R], order_R
        sorted_R, order_R = self._order_R
        at = int(order_R[np.searchsorted(sorted_R, example.row)])
        return example.output, self._rejected[at].output


class EncodedPairs(Lazy[EncodedPair]):
    """The encoded pairs of a complete store.

    Args:
        folder: where it lies.
        scored: which ids of an answer are scored; what it was encoded for.

    Attributes:
        chosen: the rows with the chosen answers.
        rejected: those with the rejected ones.
        prompt_length_R: ids before an answer.
        scored_from_R: where what is scored of an answer begins.
        alike_R: how many ids both answers have in common from there on.
        unscored: ids at the end that are not scored.

    Raises:
        DataError: a file of it is gone or damaged.
    """

    def __init__(self, folder: Path, scored: Scored) -> None:
        self.folder = folder
        self.chosen, self.rejected = TokenStore(folder), TokenStore(folder, f"{REJECTED}.")
        self.prompt_length_R, self.scored_from_R, self.alike_R = (mapped_column(folder, name) for name in PAIRED)
        self.unscored = unscored(scored)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return self.subset(range(len(self))[at])
        chosen, rejected, first = self.chosen[at], self.rejected[at], int(self.scored_from_R[at])
        spans = (range(first, len(row.ids) - self.unscored) for row in (chosen, rejected))
        return EncodedPair(chosen, rejected, next(spans), next(spans))

    @property
    def seen_ids(self) -> Sequence[int]:
        """Every id that some row has, in order."""
        return self.chosen.seen_ids


def unscored(scored: Scored) -> int:
    """How many ids at the end of an answer are not scored: the book's count leaves out the end token."""
    return 1 if scored == "book" else 0


def encoded_pairs(
    examples: ExampleStore,
    numbers: range,
    template: Template,
    tokenizer: Tokenizer,
    train_on: TrainOn,
    turns: Turns,
    scored: Scored,
) -> Iterator[tuple[pyarrow.RecordBatch, dict[str, bytes]]]:
    """As `instil.data.store.tokens.encoded_batches`, of a store of pairs.

    Raises:
        UserError: as `instil.data.encoding.encode`.
    """
    import pyarrow as pa

    others = ExampleStore(examples.folder, REJECTED)
    for number in numbers:
        if number * BATCH >= len(examples):
            return
        some = list(examples.batch(number))
        chosen = encode_many(some, template, tokenizer, train_on, turns)
        rejected = encode_many(list(others.batch(number)), template, tokenizer, train_on, turns)
        first_R = np.array([row.prompt_length for row in chosen], np.int32)
        if scored == "book":
            first_R = np.array([header_begins(example, template, tokenizer) for example in some], np.int32)
        sides = columns_of(chosen), columns_of(rejected)
        columns = {
            **sides[0],
            **columns_of_texts(some, tokenizer),
            **{f"{REJECTED}.{name}": column for name, column in sides[1].items()},
            "scored_from": column_of(first_R),
            "alike": column_of(_alike(chosen, rejected, first_R)),
        }
        yield pa.RecordBatch.from_pydict(columns), {"seen_ids": seen_in(sides[0]["ids"], sides[1]["ids"])}


def _alike(chosen: Sequence[Encoded], rejected: Sequence[Encoded], first_R: NDArray[np.int32]) -> NDArray[np.int32]:
    sides = zip(chosen, rejected, first_R.tolist(), strict=True)
    return np.array([ids_alike(one.ids, other.ids, first) for one, other, first in sides], np.int32)


def ids_alike(one: Sequence[int], other: Sequence[int], first: int) -> int:
    """How many ids from the first one on are the same in both.

    >>> ids_alike((9, 1, 2, 3), (9, 1, 2, 4), 1), ids_alike((9, 1), (9, 1, 2), 1)
    (2, 1)
    """
    most = min(len(one), len(other))
    return next((at for at in range(first, most) if one[at] != other[at]), max(most, first)) - first
