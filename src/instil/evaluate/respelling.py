"""An answer with its numbers written as a reference writes them, so that words can be compared."""

from __future__ import annotations

from typing import NamedTuple

from instil.data.words import normal, plain_digits
from instil.evaluate.numbers import Reading, runs, scaled
from instil.evaluate.numerals import Numeral, numerals


def as_in(answer: str, reference: str) -> str:
    """The answer with its numbers written as the reference writes them, where one reading makes them equal.

    >>> as_in("It costs 1 500,50 in all.", "That is 1,500.5.")
    'It costs 1,500.5 in all.'
    """
    answer, reference = normal(answer), normal(reference)
    wanted: dict[str, frozenset[Reading]] = {}
    for one in _fractions(reference):
        wanted[reference[one.start : one.end]] = frozenset({(one.value, 0)})
    for run in runs(reference):
        for first, end in run.pieces:
            if values := run.piece(first, end):
                wanted.setdefault(reference[slice(*run.span(first, end))], _in_full(values))
    if not wanted:
        return answer
    written: dict[Reading, int] = {}  # the first text for each reading, by its place among them
    for place, values in enumerate(wanted.values()):
        for reading in values:
            written.setdefault(reading, place)
    changes: list[tuple[int, int, str]] = []
    known = _Written(tuple(wanted), frozenset(wanted), written)
    taken: list[tuple[int, int]] = []
    for one in _fractions(answer):
        if _rewritten((one.start, one.end), frozenset({(one.value, 0)}), answer, known, changes):
            taken.append((one.start, one.end))
    for run in runs(answer):
        first = 0
        if any(begin <= run.span(0, 1)[0] < stop for begin, stop in taken):
            continue
        while first < len(run.groups):
            first = next(
                (
                    end
                    for end in run.ends_of(first)
                    if _rewritten(run.span(first, end), _in_full(run.piece(first, end)), answer, known, changes)
                ),
                first + 1,
            )
    for start, stop, text in sorted(changes, reverse=True):
        answer = answer[:start] + text + answer[stop:]
    return answer


def _fractions(text: str) -> list[Numeral]:
    """Fractions, of which none stands within another."""
    found = (one for one in numerals(plain_digits(text)) if one.needed or "/" in text[one.start : one.end])
    kept: list[Numeral] = []
    for one in sorted(found, key=lambda one: (one.start, -one.end)):
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
    return kept


def _in_full(values: frozenset[Reading]) -> frozenset[Reading]:
    """Readings with their magnitude multiplied; a share stays as it is written."""
    return frozenset((scaled(*reading), 0) if reading[1] > 0 else reading for reading in values)


class _Written(NamedTuple):
    """How a text writes its numbers, and the first of these ways for each reading."""

    texts: tuple[str, ...]
    spelt: frozenset[str]
    place_of: dict[Reading, int]


def _rewritten(
    span: tuple[int, int],
    values: frozenset[Reading],
    answer: str,
    known: _Written,
    changes: list[tuple[int, int, str]],
) -> bool:
    """Whether what stands there is a number of the reference; how it is written there is noted."""
    start, stop = span
    if answer[start:stop] in known.spelt:
        return True
    places = [known.place_of[reading] for reading in values if reading in known.place_of]
    if places:
        changes.append((start, stop, known.texts[min(places)]))
    return bool(places)
