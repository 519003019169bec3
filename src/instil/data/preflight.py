"""What will happen to the rows, said before anything is spent: lengths, cuts, skips, and what is wrong with texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from instil.data.findings.finding import SEVERITIES, Finding, ranked
from instil.data.findings.look import LOOKED_AT, Looked, look
from instil.data.findings.masks import KEEP, Masks, has_target, quantiles
from instil.data.lengths import lengths_of
from instil.data.splits import PARTS, Part, Split
from instil.data.words import prompt_of
from instil.errors import DataError, counted, listed, verb
from instil.records import Encoded, Example

__all__ = ["Preflight", "check", "has_target"]
LINES = 12  # on the screen
LISTED = 3  # of what stands under one of them


@dataclass(frozen=True, slots=True)
class Preflight:
    """The facts of a data set under one template and tokenizer.

    ``cut`` rows lose the end of their response at ``max_length``; ``skipped`` rows have nothing left
    to train on and are left out, ``untrained`` ones of these would have nothing at any length; ``misspelt`` rows hold
    characters outside the vocabulary, and ``altered`` ones lose case, accents or white space in the tokenizer. All of
    them hold row numbers of the file. ``ends`` says what answers end and prompts begin with.

    ``tokens`` and ``trained_tokens`` are those of training rows; ``ends_trained`` is how many of these are trained on
    their end. ``quantiles`` are lengths that so many per cent of the training rows do not exceed, and ``keeps_99`` is
    the ``data.max_length`` that leaves 99 % of all rows whole. ``findings`` are what was found in texts and masks, the
    worst first, in ``looked_at`` of the rows; ``kinds`` counts the rows of each kind by part, ``shapes`` those that
    are conversations or not, and ``scripts`` holds the share of each script in their letters.
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
    quantiles: dict[str, int] | None = None
    keeps_99: int = 0
    ends_trained: int = 0
    findings: tuple[Finding, ...] = ()
    looked_at: int = 0
    kinds: dict[str, dict[str, int]] | None = None
    scripts: dict[str, float] | None = None
    shapes: dict[str, int] | None = None
    untrained: tuple[int, ...] = ()

    @property
    def supervised(self) -> float:
        """The share of the training rows' tokens that are targets."""
        return self.trained_tokens / max(1, self.tokens)

    def as_json(self) -> dict[str, object]:
        """For ``--json`` and the report."""
        return {**asdict(self), "findings": [finding.as_json() for finding in self.findings]}

    def of(self, *severities: str) -> list[Finding]:
        """The findings of some severities."""
        return [finding for finding in self.findings if finding.severity in severities]

    def refuse(self) -> None:
        """Stop where training would be worth nothing.

        Raises:
            DataError: there is an error among the findings.
        """
        errors = self.of(SEVERITIES[0])
        if errors:
            raise DataError("\n".join(finding.line().removeprefix("error: ") for finding in errors))

    def _remedy(self) -> str:
        helps = self.max_length < self.keeps_99 < min(self.longest - 1, self.context + 1)
        if self.longest - 1 <= self.context:
            most = f", and {self.keeps_99} {100 * KEEP:.0f} % of them" if helps else ""
            return f"data.max_length={self.longest - 1} would keep all{most}"
        most = f", and data.max_length={self.keeps_99} would keep {100 * KEEP:.0f} % of them" if helps else ""
        return f"the longest has {self.longest}, and the model's context is {self.context}{most}"

    def lines(self) -> list[str]:
        """For people."""
        counts = ", ".join(f"{count:,} {part}" for part, count in self.rows.items())
        ended = self.ends_trained / max(1, self.rows["train"])
        upper = ", ".join(
            f"{share} % up to {length}" for share, length in (self.quantiles or {}).items() if share != "90"
        )
        said = [
            f"rows: {counts}",
            f"tokens in training rows: {self.tokens:,}, of which {self.trained_tokens:,} ({self.supervised:.0%}) are "
            f"targets; {_percent(ended)} of the rows are trained on their end",
            f"row length: mean {self.mean_length:.0f}, {upper}, longest {self.longest} (limit {self.max_length})",
            *filter(None, [self.ends]),
            *(finding.line() for finding in self.of("error")),
        ]
        if self.cut:
            said.append(
                f"{counted(len(self.cut), 'row is', 'rows are')} longer than {self.max_length} tokens and "
                f"{verb(len(self.cut), 'loses', 'lose')} the end of the response: {_numbers(self.cut)}; "
                f"{self._remedy()}"
            )
        if self.untrained:
            said.append(
                f"{counted(len(self.untrained), 'row is', 'rows are')} skipped, of which nothing is trained on: "
                f"{_numbers(self.untrained)}"
            )
        if filled := sorted(set(self.skipped) - set(self.untrained)):
            said.append(
                f"{counted(len(filled), 'row is', 'rows are')} skipped, whose prompt alone fills {self.max_length} "
                f"tokens: {_numbers(filled)}"
            )
        if self.unusable:
            left_out = counted(len(self.unusable), "row of the file was", "rows of the file were")
            said.append(f"{left_out} left out:\n{listed(list(self.unusable))}")
        if self.misspelt:
            said.append(
                f"{counted(len(self.misspelt), 'row holds', 'rows hold')} characters that this model's vocabulary "
                f"cannot spell, which are left out: {_numbers(self.misspelt)}"
            )
        if self.altered:
            said.append(
                f"{counted(len(self.altered), 'row is', 'rows are')} altered by this model's tokenizer, which does not "
                f"keep case, accents or white space, so answers will lack them: {_numbers(self.altered)}"
            )
        if self.repeated_prompts:
            repeat = counted(self.repeated_prompts, "test or validation row repeats", "test or validation rows repeat")
            said.append(f"{repeat} the prompt of a training row")
        said.extend(f"no {part} rows" for part, count in self.rows.items() if not count)
        said.extend(finding.line() for finding in self.of("warning"))
        said.extend(self.notes)
        said.extend(finding.line() for finding in self.of("note"))
        return list(dict.fromkeys(said))

    def few_lines(self, where: str = "the report") -> list[str]:
        """The first of them, long lists cut short, and how many more there are where."""
        lines = [_short(line, where) for line in self.lines()]
        more = len(lines) - LINES + 1
        return (
            lines if len(lines) <= LINES else [*lines[: LINES - 1], f"... and {counted(more, 'more line')} in {where}"]
        )


def check(
    split: Split,
    encoded: Mapping[Part, Sequence[Encoded]],
    max_length: int,
    *,
    context: int,
    longest: Mapping[Part, Sequence[Encoded]] | None = None,
    answers: Callable[[Example], Sequence[str]] | None = None,
    ends: str = "",
    misspelt: Sequence[int] = (),
    altered: Sequence[int] = (),
    unusable: Sequence[str] = (),
    notes: Sequence[str] = (),
    repeated: int | None = None,
    control_tokens: Sequence[str] = (),
    looked_at: int = LOOKED_AT,
    looked: Looked | None = None,
) -> Preflight:
    """Look at every row as it will be trained on; `Preflight.refuse` stops where that is worth nothing.

    Args:
        split: the rows.
        encoded: the same as ids, whose targets are counted.
        max_length: positions of a row that are kept.
        context: of the model.
        longest: the longest sequence of each row, where rows have several: what lengths are of.
        answers: of a row, where it has others than the example's own.
        ends: what answers end and prompts begin with.
        misspelt: rows with characters outside the vocabulary.
        altered: rows that lose something in the tokenizer.
        unusable: complaints of rows that were left out.
        notes: what else is to be said.
        repeated: test and validation rows that repeat a training row's prompt, where that is known.
        control_tokens: the model's, by name, which texts should not hold.
        looked_at: the texts of so many rows are looked at.
        looked: what was found in texts, where that is known.
    """
    measured = longest or encoded
    masks = {part: Masks.of(lengths_of(encoded[part]), lengths_of(measured[part]), max_length) for part in PARTS}
    train, every = masks["train"], [masks[part] for part in PARTS]
    looked = looked or look(split, answers, control_tokens, looked_at)
    by_share = train.quantiles()
    return Preflight(
        rows={part: len(split.part(part)) for part in PARTS},
        tokens=train.tokens,
        trained_tokens=train.trained,
        mean_length=float(train.lengths_R.mean()) if train.rows else 0.0,
        longest=max(int(one.lengths_R.max(initial=0)) for one in every),
        length_95=by_share["95"],
        max_length=max_length,
        context=context,
        cut=tuple(row for one in every for row in one.cut),
        skipped=tuple(row for one in every for row in one.skipped),
        repeated_prompts=repeated_prompts(split) if repeated is None else repeated,
        misspelt=tuple(misspelt),
        altered=tuple(altered),
        ends=ends,
        unusable=tuple(unusable),
        notes=tuple(notes),
        quantiles=by_share,
        keeps_99=max(1, quantiles([one.lengths_R for one in every], [KEEP])[0] - 1),
        ends_trained=train.ends,
        findings=tuple(ranked([*train.findings(context), *looked.findings])),
        looked_at=looked.rows,
        kinds={part: dict(counts.most_common()) for part, counts in looked.kinds.items()},
        scripts=looked.scripts,
        shapes=dict(looked.shapes.most_common()),
        untrained=tuple(row for one in every for row in one.untrained),
    )


def repeated_prompts(split: Split) -> int:
    """How many test and validation rows ask what a training row asks."""
    prompts = {hash(prompt_of(example)) for example in split.train}
    return sum(hash(prompt_of(example)) in prompts for part in (split.test, split.validation) for example in part)


def _short(line: str, where: str) -> str:
    """A line with a list under it: the first three of the list."""
    said, *listed_below = line.split("\n")
    if len(listed_below) <= LISTED + 1:
        return line
    more = len(listed_below) - LISTED
    return "\n".join([said, *listed_below[:LISTED], f"  ... and {counted(more, 'more line')} in {where}"])


def _numbers(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:20])
    return shown + (", ..." if len(rows) > 20 else "")


def _percent(share: float) -> str:
    """A share in whole per cent that says 0 or 100 only where that is true.

    >>> _percent(0.9999), _percent(1.0), _percent(0.001)
    ('more than 99 %', '100 %', 'less than 1 %')
    """
    if 0 < share < 0.01:
        return "less than 1 %"
    return "more than 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"
