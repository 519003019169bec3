"""In which order rows stand in their file, and what that makes of a split in file order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from instil.data.findings.finding import KEPT, Finding, named, quoted
from instil.data.findings.seen import Seen
from instil.data.splits import PARTS, Part
from instil.errors import counted
from instil.records import Example

FEW = 20  # rows of which nothing can be said
SORTED = 0.97  # share of neighbours that are in order
RUNS = 2  # stretches of one kind that a sorted file has for each kind, at most
REMEDY = "the parts of a split in file order are then of different kinds; set data.split=grouped, which shuffles"


class Order:
    """Looks at kinds, lengths and beginnings of rows, in the order in which it is shown them.

    Args:
        in_file_order: whether the parts follow one another as in the file.
    """

    def __init__(self, *, in_file_order: bool) -> None:
        self._in_file_order = in_file_order
        self.kinds: dict[Part, Counter[str]] = {part: Counter() for part in PARTS}
        self.shapes: Counter[str] = Counter()
        self._of_kind: dict[str, list[int]] = defaultdict(list)  # held-out rows
        self._rows = self._named = self._stretches = 0
        self._before = ""
        self._rising = {"instruction": 0, "length": 0, "answer's length": 0}
        self._falling = dict(self._rising)
        self._last: tuple[str, int, int] | None = None

    def see(self, row: Seen) -> None:
        """One more row."""
        kind = row.example.task
        self.shapes[_shape(row.example)] += 1
        if kind:
            self.kinds[row.part][kind] += 1
            self._named += 1
            if row.part != "train":
                self._of_kind[kind].append(row.row)
        self._stretches += kind != self._before or not self._rows
        self._before = kind
        self._rows += 1
        keys = (row.example.instruction, len(row.prompt) + len(row.answer), len(row.answer))
        if self._last is not None:
            for name, old, new in zip(self._rising, self._last, keys, strict=True):
                self._rising[name] += new > old  # type: ignore[operator]
                self._falling[name] += new < old  # type: ignore[operator]
        self._last = keys

    def findings(self) -> list[Finding]:
        """What was found."""
        return [*self._absent(), *(self._sorted() if self._in_file_order else ())]

    def _absent(self) -> Iterable[Finding]:
        """Kinds that are held out only."""
        trained = self.kinds["train"]
        absent = {kind: rows for kind, rows in self._of_kind.items() if kind not in trained}
        if not absent:
            return
        rows = sorted(row for found in absent.values() for row in found)
        names = ", ".join(quoted(kind) for kind in list(absent)[:4]) + (", ..." if len(absent) > 4 else "")
        said = (
            f"{counted(len(rows), 'held-out row')} of {counted(len(absent), 'kind')} that no training row has "
            f"({names}): {named(rows)}"
        )
        remedy = "what is held out is not what is taught; set data.split=grouped, or add such rows"
        yield Finding("kind_held_out", "warning", said, remedy, tuple(rows[:KEPT]), len(rows))

    def _sorted(self) -> Iterable[Finding]:
        if self._rows < FEW:
            return
        kinds = set().union(*self.kinds.values())
        if len(kinds) > 1 and self._stretches <= RUNS * len(kinds) and self._rows >= 4 * len(kinds):
            yield Finding("sorted_by_kind", "warning", "the file is sorted by kind of task", REMEDY)
        for name, rising in self._rising.items():
            falling = self._falling[name]
            moves = rising + falling
            if moves >= FEW / 2 and max(rising, falling) >= SORTED * moves:
                by = f"the {name}" if name != "length" else "length"
                yield Finding("sorted", "warning", f"the file is sorted by {by}", REMEDY)
                return


def _shape(example: Example) -> str:
    if example.tools or example.tool_calls or example.steps:
        return "conversation with tools"
    if example.history:
        return "conversation"
    return "instruction with input" if example.about else "instruction"
