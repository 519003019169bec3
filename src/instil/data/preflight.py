"""What will happen to the rows, said before anything is spent: lengths, cuts, skips, repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from instil.data.lengths import lengths_of
from instil.data.splits import PARTS, Part, Split
from instil.data.words import prompt_of
from instil.errors import DataError, listed
from instil.records import Encoded


@dataclass(frozen=True, slots=True)
class Preflight:
    """The facts of a data set under one template and tokenizer.

    ``cut`` rows lose the end of their response at ``max_length``; ``skipped`` rows have nothing left
    to train on and are left out; ``misspelt`` rows hold characters outside the vocabulary, and ``altered`` ones
    lose case, accents or white space in the tokenizer. All four hold row numbers of the file. ``ends`` says what
    answers end and prompts begin with.
    """

    rows: dict[str, int]
    tokens: int
    trained_tokens: int
    mean_length: float
    longest: int
    length_95: int
    max_length: int
    context: int
    cut: tuple[int, ...]
    skipped: tuple[int, ...]
    repeated_prompts: int
    misspelt: tuple[int, ...] = ()
    altered: tuple[int, ...] = ()
    ends: str = ""
    unusable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """For ``--json`` and the report."""
        return asdict(self)

    def _remedy(self) -> str:
        if self.longest - 1 <= self.context:
            return f"data.max_length={self.longest - 1} would keep all"
        return f"the longest has {self.longest}, and the model's context is {self.context}"

    def lines(self) -> list[str]:
        """For people."""
        counts = ", ".join(f"{count} {part}" for part, count in self.rows.items())
        share = self.trained_tokens / max(1, self.tokens)
        said = [
            f"rows: {counts}",
            f"tokens in training rows: {self.tokens:,}, of which {self.trained_tokens:,} ({share:.0%}) are targets",
            f"row length: mean {self.mean_length:.0f}, 95 % up to {self.length_95}, longest {self.longest} "
            f"(limit {self.max_length})",
            *filter(None, [self.ends]),
        ]
        if self.cut:
            said.append(
                f"{len(self.cut)} rows are longer than {self.max_length} tokens and lose the end of their "
                f"response: {_numbers(self.cut)}; {self._remedy()}"
            )
        if self.skipped:
            said.append(
                f"{len(self.skipped)} rows are skipped, their prompt alone fills {self.max_length} tokens: "
                f"{_numbers(self.skipped)}"
            )
        if self.unusable:
            said.append(f"{len(self.unusable)} rows of the file were left out:\n{listed(list(self.unusable))}")
        if self.misspelt:
            said.append(
                f"{len(self.misspelt)} rows hold characters that this model's vocabulary cannot spell, which are "
                f"left out of them: {_numbers(self.misspelt)}"
            )
        if self.altered:
            said.append(
                f"{len(self.altered)} rows are altered by this model's tokenizer, which does not keep case, accents or "
                f"white space, so answers will lack them: {_numbers(self.altered)}"
            )
        if self.repeated_prompts:
            said.append(f"{self.repeated_prompts} test or validation rows repeat the prompt of a training row")
        said.extend(f"no {part} rows" for part, count in self.rows.items() if not count)
        return list(dict.fromkeys([*said, *self.notes]))


def check(
    split: Split,
    encoded: Mapping[Part, Sequence[Encoded]],
    max_length: int,
    *,
    context: int,
    longest: Mapping[Part, Sequence[Encoded]] | None = None,
    ends: str = "",
    misspelt: Sequence[int] = (),
    altered: Sequence[int] = (),
    unusable: Sequence[str] = (),
    notes: Sequence[str] = (),
    repeated: int | None = None,
) -> Preflight:
    """Look at every row as it will be trained on.

    Args:
        split: the rows.
        encoded: the same as ids, whose targets are counted.
        max_length: positions of a row that are kept.
        context: of the model.
        longest: the longest sequence of each row, where rows have several: what lengths are of.
        ends: what answers end and prompts begin with.
        misspelt: rows with characters outside the vocabulary.
        altered: rows that lose something in the tokenizer.
        unusable: complaints of rows that were left out.
        notes: what else is to be said.
        repeated: test and validation rows that repeat a training row's prompt, where that is known.

    Raises:
        DataError: not one row has anything left to train on.
    """
    train = lengths_of(encoded["train"])
    measured = {part: lengths_of((longest or encoded)[part]) for part in PARTS}
    lengths_R = measured["train"].ids_R
    skipped: list[int] = []
    cut: list[int] = []
    for part in PARTS:
        has_target_R = measured[part].has_target_R(max_length)
        skipped += measured[part].row_R[~has_target_R].tolist()
        cut += measured[part].row_R[measured[part].cut_R(max_length) & has_target_R].tolist()
    if not train.has_target_R(max_length).any():
        raise DataError(
            f"none of the {len(train.rows)} training rows has a response within {max_length} tokens; "
            f"the longest row has {lengths_R.max()}"
            + (": raise data.max_length" if max_length < context else ", and the model's context is no longer")
        )
    return Preflight(
        rows={part: len(split.part(part)) for part in PARTS},
        tokens=int(train.ids_R.sum()),
        trained_tokens=int(train.trained_R(max_length).sum()),
        mean_length=float(lengths_R.mean()),
        longest=max(int(one.ids_R.max()) for one in measured.values() if len(one.ids_R)),
        length_95=int(np.quantile(lengths_R, 0.95) + 1e-9),
        max_length=max_length,
        context=context,
        cut=tuple(cut),
        skipped=tuple(skipped),
        repeated_prompts=repeated_prompts(split) if repeated is None else repeated,
        misspelt=tuple(misspelt),
        altered=tuple(altered),
        ends=ends,
        unusable=tuple(unusable),
        notes=tuple(notes),
    )


def repeated_prompts(split: Split) -> int:
    """How many test and validation rows ask what a training row asks."""
    prompts = {prompt_of(example) for example in split.train}
    return sum(prompt_of(example) in prompts for part in (split.test, split.validation) for example in part)


def has_target(row: Encoded, max_length: int) -> bool:
    """Whether anything is left to predict within ``max_length`` positions."""
    return any(row.trained[1 : max_length + 1])


def _numbers(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:20])
    return shown + (", ..." if len(rows) > 20 else "")
