"""How long rows are as ids, what of them is trained on, and what a limit would cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instil.data.findings.finding import KEPT, Finding, named
from instil.data.lengths import Lengths
from instil.errors import counted
from instil.records import Encoded

QUANTILES = (0.5, 0.9, 0.95, 0.99)
KEEP = 0.99  # share of the rows that a limit should leave whole
FEW_TARGETS = 0.01  # share of the tokens below which hardly anything is learnt
CUT = 0.05  # share of the rows that may lose their end before that is worth a warning


def has_target(row: Encoded, max_length: int) -> bool:
    """Whether anything is left to predict within ``max_length`` positions."""
    return any(row.trained[1 : max_length + 1])


@dataclass(frozen=True, slots=True)
class Masks:
    """Counts over the rows of one part.

    ``lengths_R`` are those of each row's longest sequence. A row of n ids needs n - 1 positions: its last id is only
    ever a target. ``cut`` rows lose the end of their answer, ``skipped`` rows have nothing left to train on,
    and ``untrained`` ones of these nothing at any length.
    ``endless`` are rows that are whole, and whose end is not trained on: so many, and the first of them.
    """

    max_length: int
    lengths_R: NDArray[np.int32]
    tokens: int
    trained: int
    ends: int
    masked: int
    endless_rows: int
    endless: tuple[int, ...]
    cut: tuple[int, ...]
    skipped: tuple[int, ...]
    untrained: tuple[int, ...]

    @classmethod
    def of(cls, rows: Lengths, longest: Lengths, max_length: int) -> Masks:
        """Those of rows, and of the longest sequence of each."""
        kept_R = rows.trained_R(max_length)
        whole_R = (kept_R > 0) & ~rows.cut_R(max_length)
        endless_R = whole_R & ~rows.end_R
        has_target_R = longest.has_target_R(max_length)
        return cls(
            max_length,
            longest.ids_R,
            tokens=int(rows.ids_R.sum()),
            trained=int(kept_R.sum()),
            ends=int((whole_R & rows.end_R).sum()),
            masked=int((kept_R == 0).sum()),
            endless_rows=int(endless_R.sum()),
            endless=tuple(rows.row_R[endless_R][:KEPT].tolist()),
            cut=tuple(longest.row_R[longest.cut_R(max_length) & has_target_R].tolist()),
            skipped=tuple(longest.row_R[~has_target_R].tolist()),
            untrained=tuple(longest.row_R[longest.first_target_R == 0].tolist()),
        )

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.lengths_R)

    def quantiles(self) -> dict[str, int]:
        """Lengths that so many per cent of the rows do not exceed."""
        found = quantiles([self.lengths_R], QUANTILES)
        return {f"{round(100 * share)}": length for share, length in zip(QUANTILES, found, strict=True)}

    def findings(self, context: int) -> Iterable[Finding]:
        """What was found, of training rows."""
        if not self.rows:
            return
        if self.masked == self.rows:
            yield self._nothing(context)
            return
        if self.trained < FEW_TARGETS * self.tokens:
            said = f"only {self.trained:,} of {self.tokens:,} tokens are targets"
            yield Finding("few_targets", "warning", said, "look with --row at what is trained on")
        if self.endless:
            said = f"the end of {counted(self.endless_rows, 'row')} is not trained on: {named(self.endless)}"
            remedy = "the model learns from the others alone where to stop"
            yield Finding("end_not_trained", "warning", said, remedy, self.endless)

    def _nothing(self, context: int) -> Finding:
        longest = int(self.lengths_R.max())
        if longest - 1 <= self.max_length:
            said = f"not one token of the {counted(self.rows, 'training row')} is trained on: every target is masked"
            return Finding(
                "all_masked",
                "error",
                said,
                "look with --row at what is trained on, at data.train_on, and at the weights of messages",
            )
        said = (
            f"none of the {self.rows:,} training rows has a response within {self.max_length} tokens; "
            f"the longest row has {longest:,}"
        )
        if self.max_length < context:
            return Finding("all_masked", "error", said, "raise data.max_length")
        return Finding("all_masked", "error", f"{said}, and the model's context is no longer")


def quantiles(lengths: Iterable[NDArray[np.int32]], shares: Sequence[float]) -> list[int]:
    """The least lengths that such shares of the rows do not exceed; zeros where there are no rows.

    >>> quantiles([np.array([5, 1, 4]), np.array([2, 3])], (0.5, 0.99))
    [3, 5]
    """
    every = np.sort(np.concatenate([np.zeros(0, np.int32), *lengths]))
    return [int(every[max(0, math.ceil(share * len(every)) - 1)]) if len(every) else 0 for share in shares]
