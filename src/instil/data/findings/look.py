"""A look at the texts of rows: at all of them, or where there are very many at some that are drawn by a seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from instil.data.findings.answers import Answers
from instil.data.findings.finding import Finding, ranked
from instil.data.findings.order import Order
from instil.data.findings.scripts import Scripts
from instil.data.findings.seen import Seen, seen
from instil.data.findings.texts import Texts
from instil.data.splits import PARTS, Part, Split
from instil.data.subset import Numbers, some
from instil.records import Example

LOOKED_AT = 100_000  # rows at most
SCRIPTS_OF = 2_000  # rows whose letters are counted
SEED = 123


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found in so many of the rows, their kinds by part, their shapes, and the share of each script."""

    rows: int
    of: int
    findings: tuple[Finding, ...]
    kinds: dict[Part, Counter[str]]
    scripts: dict[str, float]
    shapes: Counter[str]


def look(
    split: Split,
    answers: Callable[[Example], Sequence[str]] | None = None,
    own: Sequence[str] = (),
    at_most: int = LOOKED_AT,
) -> Looked:
    """Look at the texts of rows once.

    Args:
        split: the rows.
        answers: of a row, where it has others than the example's own.
        own: the model's control tokens by name.
        at_most: so many rows are looked at.
    """
    texts, said, order = Texts(own), Answers(), Order(in_file_order=split.kind == "book")
    scripts = Scripts()
    total = sum(len(split.part(part)) for part in PARTS)
    every = -(-min(total, at_most) // SCRIPTS_OF)
    rows = 0
    for row in _some(split, total, at_most, answers):
        texts.see(row)
        said.see(row)
        order.see(row)
        if rows % every == 0:
            scripts.add((row.prompt, *row.answers))
        rows += 1
    found = ranked([*said.findings(), *texts.findings(), *order.findings()])
    if rows < total:
        found = [replace(one, said=f"{one.said} (of {rows:,} rows looked at)") for one in found]
    return Looked(rows, total, tuple(found), order.kinds, scripts.shares(), order.shapes)


def _some(split: Split, total: int, at_most: int, answers: Callable[[Example], Sequence[str]] | None) -> Iterator[Seen]:
    """All rows or some of them, in their order; of each part its share."""
    for part in PARTS:
        examples = split.part(part)
        wanted: Numbers = range(len(examples))
        if total > at_most:
            count = max(min(len(examples), 1), at_most * len(examples) // total)
            wanted = np.array(sorted(random.Random(f"{SEED} {part}").sample(range(len(examples)), count)), np.int64)
        for example in some(examples, wanted):
            yield seen(example, part, answers(example) if answers else ())
