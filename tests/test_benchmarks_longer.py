"""The rows of benchmarks/longer.json: what README of the benchmarks says of them, and the style of their answers."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from instil.data.near_duplicates import Seen, nearest_of, prompt_text
from instil.data.sources import read_source
from instil.records import Example
from tests.conftest import gpt2

ROWS = Path(__file__).parents[1] / "benchmarks" / "longer.json"
KINDS = {
    "explain_to_child", "how_to", "compare", "pros_cons", "email", "paragraph_summary", "tone", "plan", "recipe",
    "code_help", "story", "process", "advice", "notes_to_prose", "read_and_answer", "interview",
}  # fmt: skip
CLOSING = "In short,"
EMPTY_WORDS = re.compile(r"(sure|of course|certainly|absolutely|great|okay|ok|here is|here are|here's|hello)\b", re.I)


@cache
def rows() -> tuple[Example, ...]:
    source = read_source(ROWS)
    assert not source.rejected
    return tuple(source.examples)


def said(row: Example, role: str) -> list[str]:
    return [turn.content for turn in row.turns if turn.role == role]


def faults_of(answer: str) -> list[str]:
    """What an answer has against the style of the house."""
    *body, closing = answer.split("\n\n")
    points = [line.startswith("- ") for line in answer.split("\n")]
    lists = sum(now and not before for before, now in pairwise([False, *points]))
    rules = {
        "of 40 to 120 words": 40 <= len(answer.split()) <= 120,
        "begins with the answer": bool(body) and not EMPTY_WORDS.match(answer) and not points[0],
        "closes in one line of at most 16 words": bool(re.fullmatch(rf"{CLOSING} [^\n]+\.", closing))
        and len(closing.split()) <= 16
        and answer.count(CLOSING) == 1,
        "at most one list, of two to five points": lists <= 1 and sum(points) in (0, 2, 3, 4, 5),
        "a dash and nothing else": not re.search(r"^ *([*+]|[0-9]+[.)]) |\*\*|```|^#", answer, re.M),
        "plain ASCII": answer.isascii() and " -- " not in answer,
    }
    return [rule for rule, kept in rules.items() if not kept]


def test_there_are_enough_rows_of_every_kind_and_they_are_mixed() -> None:
    kinds = [row.task for row in rows()]
    assert len(kinds) == 240
    assert Counter(kinds) == dict.fromkeys(KINDS, 15)
    # Each kind once in sixteen rows, so that all parts of a split in the order of the file have all of them.
    assert all(set(kinds[at : at + len(KINDS)]) == KINDS for at in range(0, len(kinds), len(KINDS)))
    assert len({tuple(kinds[at : at + len(KINDS)]) for at in range(0, len(kinds), len(KINDS))}) == 15


def test_most_rows_have_a_second_question_and_some_a_system_message() -> None:
    asked = [len(said(row, "user")) for row in rows()]
    assert set(asked) == {1, 2}
    assert asked.count(2) >= len(asked) / 2
    assert 20 <= sum(bool(said(row, "system")) for row in rows()) <= 60
    assert all(turn.content.isascii() for row in rows() for turn in row.turns)


def test_every_answer_keeps_the_style() -> None:
    faults = {answer[:60]: faults_of(answer) for row in rows() for answer in said(row, "assistant")}
    assert {answer: found for answer, found in faults.items() if found} == {}


GOOD = "Tea cools faster in a wide cup.\n\n" + "It gives off more heat. " * 8 + "\n\nIn short, a wide cup cools sooner."


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        ("In short, yes.", "of 40 to 120 words"),
        (GOOD.replace("Tea", "Sure, tea"), "begins with the answer"),
        (GOOD.replace("In short,", "So"), "closes in one line of at most 16 words"),
        (GOOD + " And so on\nand on.", "closes in one line of at most 16 words"),
        (GOOD.replace("\n\nIt", "\n\n" + "- Heat.\n" * 6 + "\nIt"), "at most one list, of two to five points"),
        (GOOD.replace("\n\nIt", "\n\n- One.\n- Two.\n\nIt gives\n- Three.\n\nIt"), "at most one list"),
        (GOOD.replace("\n\nIt", "\n\n1. It"), "a dash and nothing else"),
        (GOOD.replace("wide", "wide \u2013 open \u2013"), "plain ASCII"),
    ],
)
def test_what_is_not_in_the_style_is_found(answer: str, rule: str) -> None:
    assert faults_of(GOOD) == []
    assert any(found.startswith(rule) for found in faults_of(answer))


def test_no_two_rows_ask_nearly_the_same() -> None:
    """Neither their prompts as instil compares them, nor their first questions."""
    for texts, limit in (([prompt_text(row) for row in rows()], 0.9), ([said(row, "user")[0] for row in rows()], 0.82)):
        seen = Seen(texts[:1], common=texts)
        for text in texts[1:]:
            cosine, at = seen.nearest(text)
            assert cosine < limit, (text, texts[at])
            seen.add(text)


def test_no_two_rows_answer_in_the_same_words() -> None:
    """Long texts of one language are near by their characters, so runs of eight words are compared."""
    met: dict[tuple[str, ...], int] = {}
    for number, row in enumerate(rows()):
        words = " ".join(said(row, "assistant")).lower().split()
        for at in range(len(words) - 7):
            assert met.setdefault(tuple(words[at : at + 8]), number) == number, words[at : at + 8]


def test_they_are_of_other_kinds_than_the_starter_rows() -> None:
    starter = read_source("starter").examples
    assert not KINDS & {row.task for row in starter}
    cosines, _ = nearest_of([prompt_text(row) for row in starter], [prompt_text(row) for row in rows()])
    assert max(cosines) < 0.8


def test_a_row_fits_into_a_short_context() -> None:
    """GPT-2's tokens, which are about as long as SmolLM2's; prompts add some forty for each question."""
    longest = max(len(gpt2().encode("\n".join(turn.content for turn in row.turns))) for row in rows())
    assert longest < 600
