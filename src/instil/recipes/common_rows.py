"""The rows that several runs or files have all answered, whose scores can be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from instil.data.near_duplicates import Near
from instil.data.words import normal
from instil.errors import DataError, listed_names
from instil.recipes.score import Scored, score_answers
from instil.records import Example
from instil.runs.answers import AnsweredRows, find_answers, no_answers_after
from instil.screen import Screen
from instil.settings.asking import ScoreOptions


def answers_at(path: Path, side: str) -> AnsweredRows:
    """The answers meant by a path: of a run the tuned model's, and no others unless their file is named.

    Raises:
        DataError: there are none; the message begins with the ``side``.
    """
    found = find_answers(path, only=("tuned",))
    if not path.is_dir():
        return found[0]
    tuned = next((one for one in found if one.which == "tuned"), None)
    if tuned is None:
        raise DataError(f"{side}: {no_answers_after(path, found)}")
    return tuned


def names_of(paths: Sequence[Path]) -> list[str]:
    """Names by which people tell these apart: the last parts of their paths, as many as it takes.

    >>> names_of([Path("/runs/a/one"), Path("/runs/b/one")]), names_of([Path("/runs/a"), Path("/runs/a")])
    (['a/one', 'b/one'], ['A', 'B'])
    """
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [chr(ord("A") + at) for at in range(len(paths))]


def common(answered: Sequence[AnsweredRows]) -> list[tuple[int, ...]]:
    """Places of the rows that all have, in the order of the last; equal rows are taken one after the other.

    Raises:
        DataError: there is none.
    """
    found = [_places(one.examples) for one in answered]
    rows = [tuple(one[row] for one in found) for row in found[-1] if all(row in one for one in found)]
    if not rows:
        files = listed_names([str(one.file) for one in answered])
        raise DataError(
            f"{files} have no row in common (instruction, input and output must be equal); "
            f"answer the same rows with {'both' if len(answered) == 2 else 'all'}: "
            "instil respond RUN --data ROWS.json --out FILE.json"
        )
    return rows


def _places(examples: Sequence[Example]) -> dict[tuple[tuple[str, ...], int], int]:
    """Where each row is, by what it is known by; equal ones are counted."""
    places: dict[tuple[tuple[str, ...], int], int] = {}
    seen: Counter[tuple[str, ...]] = Counter()
    for at, row in enumerate(examples):
        asked = _asked(row)
        places[asked, seen[asked]] = at
        seen[asked] += 1
    return places


def _asked(row: Example) -> tuple[str, ...]:
    """By what rows are told to be the same: their whole conversation, in one normal form; a blank input is none."""
    said = (
        text for turn in row.turns for text in (turn.role, turn.content, turn.about, turn.reasoning, turn.tool_calls)
    )
    return tuple(map(normal, (*said, row.tools)))


def scores_of(answered: AnsweredRows, judge: str, options: ScoreOptions, screen: Screen) -> Scored:
    """A judge's verdicts on these answers, which lie nowhere that is written to."""
    return next(iter(score_answers([answered], judge, options, screen, keep=False).values()))


def leaks_of(answered: Sequence[AnsweredRows], rows: Sequence[Sequence[int]]) -> tuple[dict[int, Near], bool]:
    """Which of the common rows are nearly the same as a row that one of the models was trained on; and whether
    anybody looked.
    """
    found: dict[int, Near] = {}
    looked = False
    for side, one in enumerate(answered):
        leaks = one.run.read_leaks() if one.run else None
        if leaks is None:
            continue
        looked = True
        by_row = {near.row: near for near in leaks}
        for n, places in enumerate(rows):
            near = by_row.get(one.examples[places[side]].row)
            if near is not None:
                found.setdefault(n, near)
    return found, looked
