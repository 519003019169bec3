"""Answers that teach nothing: empty ones, place-holders, the same for every prompt, the prompt again, cut ones."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from instil.data.findings.finding import KEPT, Finding, named, quoted
from instil.data.findings.seen import Seen
from instil.data.words import normal
from instil.errors import counted
from instil.records import blank

PLACE_HOLDERS = {
    "nan", "null", "none", "n/a", "#n/a", "na", "undefined", "<noinput>", "<nooutput>", "<no input>", "<empty>",
    "noinput", "no input", "(none)", "(empty)", "[empty]", "todo", "tbd", "nil", "<na>", "[]", "{}", '""', "''",
}  # fmt: skip
LONGEST_PLACE_HOLDER = 12
EQUAL = 3  # different prompts of which all have the same answer
MANY = 5  # different prompts with the same answer, if it is a sentence
SENTENCE = 20  # letters from which an answer is no mere label
LONG = 60  # the same of one that hardly answers several prompts by chance; of shorter ones it takes a share
OFTEN = 0.01
SHARE = 0.8  # of the answers that a label may be
FEW = 20  # rows of which nothing can be said by shares
ENDED = 0.9  # share of the long answers that must end properly before the others are doubted
_PROSE = re.compile(r"[.!?\u3002\uff01\uff1f\u0964\u061f][\"')\]\u201d\u2019\u00bb]*\s")  # a sentence has ended before
_ENDING = tuple(".!?:;)]}>\"'`*_|=~\u201d\u2019\u00bb\u2026\u3002\uff01\uff1f\u300d\u0964\u061f")
PROSE_WORDS = 12  # words of a last line that is prose


@dataclass(slots=True)
class _Places:
    """Rows that share something: how many, and the first of them."""

    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        self.count += 1
        if len(self.rows) < KEPT:
            self.rows.append(row)


class Answers:
    """Looks at the answers of as many rows as it is shown, and at prompts and rows that come again."""

    def __init__(self) -> None:
        self._train = 0
        self._empty, self._inputs, self._holders = _Places(), _Places(), _Places()
        self._texts: Counter[tuple[str, str]] = Counter()  # place-holders as they are written, by key
        self._answers: dict[str, _Places] = defaultdict(_Places)  # of training rows, prompts once each
        self._prompts: dict[int, int] = {}  # of a prompt: its first answer
        self._rows: set[tuple[int, int]] = set()
        self._repeated, self._otherwise = _Places(), _Places()
        self._echoes, self._begins = _Places(), _Places()
        self._long, self._ended, self._unended = 0, 0, _Places()
        self._worthless = Counter[str]()

    def see(self, row: Seen) -> None:
        """One more row."""
        example = row.example
        answer = row.answer.strip()
        empty = blank(answer) and not example.tool_calls
        if row.part == "train":
            self._train += 1
        if empty:
            self._empty.add(row.row)
        elif _is_place_holder(answer):
            self._holders.add(row.row)
            self._texts["output", answer] += 1
        if _is_place_holder(example.input.strip()):
            self._inputs.add(row.row)
            self._texts["input", example.input.strip()] += 1
        if row.part == "train" and (empty or _is_place_holder(answer)):
            self._worthless["" if empty else answer] += 1
        self._again(row, answer)
        if not empty:
            self._echo(row, answer)
            self._end(row, answer)

    def _again(self, row: Seen, answer: str) -> None:
        prompt = hash(normal(row.prompt).strip())
        said = hash((normal(answer), row.example.tool_calls))
        if blank(row.prompt):  # a text without a question
            prompt = said
        if (prompt, said) in self._rows:
            self._repeated.add(row.row)
        elif prompt in self._prompts:
            self._otherwise.add(row.row)
        if row.part == "train" and prompt not in self._prompts:
            self._answers[answer or row.example.tool_calls].add(row.row)
        self._prompts.setdefault(prompt, said)
        self._rows.add((prompt, said))

    def _echo(self, row: Seen, answer: str) -> None:
        asked = row.example.instruction.strip()
        if answer == asked:
            self._echoes.add(row.row)
        elif len(asked) >= SENTENCE and answer.startswith(asked):
            self._begins.add(row.row)

    def _end(self, row: Seen, answer: str) -> None:
        last = answer[answer.rfind("\n") + 1 :]
        if len(last) < 4 * PROSE_WORDS or last.count(" ") < PROSE_WORDS or not _PROSE.search(last):
            return
        self._long += 1
        if last.endswith(_ENDING):
            self._ended += 1
        elif last[-1].islower() or last[-1] in ",-\u060c\u3001\uff0c":
            self._unended.add(row.row)

    def findings(self) -> list[Finding]:
        """What was found."""
        found = [*self._worth()]
        worthless = bool(found)
        if not worthless:
            found += self._same()
        found += _found("empty_answer", self._empty, "{} with an empty answer", "write them, or leave these rows out")
        mend = "write an answer, or leave these rows out, unless that is the answer"
        found += _found(
            "place_holder", self._holders, "{} whose answer is a place-holder (" + self._holding("output") + ")", mend
        )
        mend = 'a row without input has "" there, or no such key'
        found += _found(
            "place_holder_input",
            self._inputs,
            "{} whose input is a place-holder (" + self._holding("input") + ")",
            mend,
        )
        found += _found("echo", self._echoes, "{} whose answer is the instruction again", "write the answer")
        mend = "leave the prompt out of the answer, or the model learns to repeat it"
        found += _found("echo_begins", self._begins, "{} whose answer begins with its own instruction", mend)
        if self._long >= FEW and self._ended >= ENDED * self._long:
            mend = "look whether they were cut; the model learns to stop there"
            found += _found("unended", self._unended, "{} whose long answer ends within a sentence", mend)
        found += _found("repeated_row", self._repeated, "{} that say what an earlier row says", "leave repetitions out")
        said = "{} that ask what an earlier row asks, and answer otherwise"
        found += _found("answered_otherwise", self._otherwise, said, "", note=True)
        return found

    def _holding(self, key: str) -> str:
        """The place-holders of a key, as they are to stand in a format string."""
        shown = [f"{quoted(text)} {count}" for (where, text), count in self._texts.most_common() if where == key]
        return _braced(", ".join(shown[:4]) + (", ..." if len(shown) > 4 else ""))

    def _worth(self) -> Iterable[Finding]:
        """Whether the training rows are good for nothing."""
        if self._train and self._worthless.total() == self._train:
            shown = ", ".join(quoted(text) if text else "nothing" for text, _ in self._worthless.most_common(4))
            said = f"the answers of all {counted(self._train, 'training row')} are empty or place-holders ({shown})"
            yield Finding("no_answers", "error", said, "look at the column that the answers come from")
        elif len(self._answers) == 1:
            ((answer, places),) = self._answers.items()
            if places.count >= EQUAL:
                said = f"all {counted(self._train, 'training row')} have the same answer, {quoted(answer)}"
                remedy = "nothing but that could be learnt; look at the column that the answers come from"
                yield Finding("one_answer", "error", said, remedy, tuple(places.rows))

    def _same(self) -> Iterable[Finding]:
        """Answers that are given to many prompts."""
        prompts = sum(places.count for places in self._answers.values())
        often = sorted(self._answers.items(), key=lambda item: -item[1].count)
        sentences = [
            (text, places)
            for text, places in often
            if places.count >= (MANY if len(text) >= LONG else max(MANY, OFTEN * prompts)) and len(text) >= SENTENCE
        ]
        if sentences:
            text, most = sentences[0]
            several = f"{len(sentences)} answers are each" if len(sentences) > 1 else "1 answer is"
            said = (
                f"{several} given to {MANY} and more different prompts, "
                f"{'mostly' if len(sentences) > 1 else 'namely'} {quoted(text)} to {most.count:,}: {named(most.rows)}"
            )
            rows = sorted(row for _, places in sentences for row in places.rows)
            yield Finding("repeated_answer", "warning", said, "see that they answer these prompts", tuple(rows[:KEPT]))
        if often and prompts >= FEW and often[0][1].count >= SHARE * prompts and len(often[0][0]) < SENTENCE:
            text, most = often[0]
            said = f"{most.count / prompts:.0%} of the training answers are {quoted(text)}"
            remedy = "the model can do well by always saying that; balance the answers"
            yield Finding("one_label", "warning", said, remedy, tuple(most.rows))


def _found(kind: str, places: _Places, said: str, remedy: str, *, note: bool = False) -> list[Finding]:
    if not places.count:
        return []
    line = f"{said.format(counted(places.count, 'row'))}: {named(places.rows)}"
    if places.count == 1:
        line = line.replace(" that say ", " that says ").replace(" that ask ", " that asks ")
        line = line.replace("and answer otherwise", "and answers otherwise")
    return [Finding(kind, "note" if note else "warning", line, remedy, tuple(places.rows), places.count)]


def _braced(text: str) -> str:
    """A text that is to stand in a format string."""
    return text.replace("{", "{{").replace("}", "}}")


def _is_place_holder(text: str) -> bool:
    return 0 < len(text) <= LONGEST_PLACE_HOLDER and text.lower() in PLACE_HOLDERS
