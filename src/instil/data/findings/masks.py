"""How long rows are as ids, what of them is trained on, and what a limit would cut."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from instil.data.findings.finding import KEPT, Finding, named
from instil.errors import counted
from instil.records import Encoded

QUANTILES = (0.5, 0.9, 0.95, 0.99)
KEEP = 0.99  # share of the rows that a limit should leave whole
FEW_TARGETS = 0.01  # share of the tokens below which hardly anything is learnt
CUT = 0.05  # share of the rows that may lose their end before that is worth a warning


def has_target(row: Encoded, max_length: int) -> bool:
    """Whether anything is left to predict within ``max_length`` positions."""
    return any(row.trained[1 : max_length + 1])


@dataclass(slots=True)
class Masks:
    """Counts over the rows of one part, which are looked at once.

    ``lengths`` are those of each row's longest sequence. A row of n ids needs n - 1 positions: its last id is only ever
    a target. ``cut`` rows lose the end of their answer, ``skipped`` rows have nothing left to train on.
    """

    max_length: int
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    tokens: int = 0
    trained: int = 0
    ends: int = 0
    masked: int = 0
    endless: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)

    def see(self, row: Encoded, longest: Encoded) -> None:
        """One more row, and the longest of its sequences."""
        length = len(longest.ids)
        kept = sum(row.trained[1 : self.max_length + 1])
        self.lengths.append(length)
        self.tokens += len(row.ids)
        self.trained += kept
        if kept and len(row.ids) - 1 <= self.max_length:
            if row.trained[-1]:
                self.ends += 1
            elif len(self.endless) < KEPT:
                self.endless.append(row.row)
        if not has_target(longest, self.max_length):
            self.skipped.append(longest.row)
        elif length - 1 > self.max_length:
            self.cut.append(longest.row)
        self.masked += not kept

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.lengths)

    def quantiles(self) -> dict[str, int]:
        """Lengths that so many per cent of the rows do not exceed."""
        found = quantiles([self.lengths], QUANTILES)
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
            count = self.rows - self.ends - len(self.cut) - len(self.skipped)
            said = (
                f"the end of {counted(max(count, len(self.endless)), 'row')} is not trained on: {named(self.endless)}"
            )
            remedy = "the model learns from the others alone where to stop"
            yield Finding("end_not_trained", "warning", said, remedy, tuple(self.endless))

    def _nothing(self, context: int) -> Finding:
        longest = max(self.lengths)
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


def quantiles(lengths: Iterable[array[int]], shares: Sequence[float]) -> list[int]:
    """The least lengths that such shares of the rows do not exceed; zeros where there are no rows.

    >>> quantiles([array("Q", [5, 1, 4]), array("Q", [2, 3])], (0.5, 0.99))
    [3, 5]
    """
    every = np.sort(np.concatenate([np.zeros(0, np.uint64), *(np.asarray(some, np.uint64) for some in lengths)]))
    return [int(every[max(0, math.ceil(share * len(every)) - 1)]) if len(every) else 0 for share in shares]
