"""Answers that are labelled good or bad (KTO's form), as pairs where one prompt has both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from instil.data.shapes.reading import Rejected
from instil.data.shapes.rows import Labelled
from instil.records import Example, Pair


def pairs_of_labelled(labelled: Sequence[Labelled]) -> tuple[list[Pair], list[Rejected]]:
    """A pair of each good answer with a bad one to the same prompt, in file order, and the rows that found no other.

    A pair has the number of its good answer's row; every answer is used once.

    >>> good, bad = Labelled(Example("2 + 2?", "4", row=0), True), Labelled(Example("2 + 2?", "5", row=1), False)
    >>> pairs_of_labelled([good, bad])[0][0].rejected
    '5'
    """
    prompts: dict[Example, tuple[list[Example], list[Example]]] = {}
    for one in labelled:
        sides = prompts.setdefault(replace(one.example, output="", row=-1), ([], []))
        sides[0 if one.wanted else 1].append(one.example)
    pairs: list[Pair] = []
    single: list[Rejected] = []
    for good, bad in prompts.values():
        both = min(len(good), len(bad))
        pairs += [
            Pair(replace(chosen, output=""), chosen.output, rejected.output)
            for chosen, rejected in zip(good, bad, strict=False)
        ]
        single += [Rejected(one.row, _lacks("false")) for one in good[both:]]
        single += [Rejected(one.row, _lacks("true")) for one in bad[both:]]
    return sorted(pairs, key=lambda pair: pair.row), single


def _lacks(label: str) -> str:
    return (
        f"no answer with the label {label} to the same prompt is left for a pair; the losses here compare two answers"
    )
