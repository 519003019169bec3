"""The starter data set: its form, its spread over splits, and every row's facts and language.

The checkers of the rows are in `starter_checks`; here each is run on all rows of its kind, and then on
corrupted copies of them, which it must refuse.
"""

import importlib.resources
import json
import re
from collections import Counter

import numpy as np
import pytest

from .starter_checks import CHECKS, SPELL, Row, norm, prompt, words

TEXT = importlib.resources.files("instil.data").joinpath("starter.json").read_text("utf-8")
ROWS: list[Row] = json.loads(TEXT)
KINDS = sorted({row["task"] for row in ROWS})
LABELS = {"part_of_speech", "sentence_type", "sentiment"}
LISTS = {"alphabetical", "headline", "json_format", "number_order"}
WRONG_ON_PURPOSE = {"spelling", "grammar", "punctuation", "capitalization", "formal"}
# Proper nouns and rare words that are right although the dictionary lacks them.
PROPER = set(
    words(
        """addis ababa amara auguste bogotá brontë ilyich edvard fyodor haddad kanagawa karim katsushika kofi
        krona lindqvist mei moby okoro osei penh phnom pluralize porto priya rossi wuthering yuki"""
    )
)


def of_kind(kind: str) -> list[Row]:
    return [row for row in ROWS if row["task"] == kind]


def refuses(row: Row, output: str) -> bool:
    """Whether the row's checker refuses this output in place of the row's own."""
    try:
        CHECKS[row["task"]](row | {"output": output})
    except Exception:
        return True
    return False


def book_split() -> dict[str, list[Row]]:
    """The first 85 % of the file to train on, the next 10 % to test, the rest to validate."""
    train, test = int(len(ROWS) * 0.85), int(len(ROWS) * 0.1)
    return {"train": ROWS[:train], "test": ROWS[train : train + test], "validation": ROWS[train + test :]}


def test_there_are_enough_rows_and_kinds():
    """At least 1,150 rows of at least 44 kinds, each kind with 15 to 40 rows and a checker."""
    counts = Counter(row["task"] for row in ROWS)
    assert len(ROWS) >= 1150 and len(counts) >= 44
    assert all(15 <= n <= 40 for n in counts.values()), counts
    assert set(counts) == set(CHECKS)


def test_the_file_is_plainly_formatted():
    """The file is what `json.dumps` writes with an indent of one, so that a change shows as a small diff."""
    assert json.dumps(ROWS, indent=1, ensure_ascii=False) + "\n" == TEXT


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_well_formed(kind: str):
    """Four string fields; no stray blanks, control or template marks; a short answer that ends properly."""
    for row in of_kind(kind):
        assert list(row) == ["task", "instruction", "input", "output"]
        assert row["instruction"] and row["output"]
        for text in row.values():
            assert isinstance(text, str) and text == text.strip(), row
            assert not re.search(r"  |[\x00-\x1f\x7f]|[‘’“”]|###|<\|", text), row
        assert len(row["output"].split()) <= 30, row
        assert kind in LISTS or re.search(r"[.?'\"\])]$", row["output"]), row


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_asked_in_several_ways(kind: str):
    """The instructions of a kind begin in at least four ways."""
    assert len({tuple(row["instruction"].split()[:2]) for row in of_kind(kind)}) >= 4


def test_about_half_of_the_inputs_are_empty():
    empty = sum(not row["input"] for row in ROWS)
    assert 0.4 <= empty / len(ROWS) <= 0.6


def test_no_prompt_is_there_twice():
    seen = Counter((norm(row["instruction"]), norm(row["input"])) for row in ROWS)
    assert len(seen) == len(ROWS), [key for key, n in seen.items() if n > 1]


def test_no_two_prompts_are_near_duplicates():
    """The sets of three-letter grams of any two prompts overlap by less than 0.7 (Jaccard)."""
    texts = [norm(prompt(row)) for row in ROWS]
    grams = [{text[i : i + 3] for i in range(len(text) - 2)} for text in texts]
    column = {gram: j for j, gram in enumerate(sorted(set().union(*grams)))}
    table = np.zeros((len(ROWS), len(column)), dtype=np.float32)
    for i, row_grams in enumerate(grams):
        table[i, [column[gram] for gram in row_grams]] = 1
    common = table @ table.T
    size = table.sum(axis=1)
    overlap = common / (size[:, None] + size[None, :] - common)
    np.fill_diagonal(overlap, 0)
    worst = np.unravel_index(overlap.argmax(), overlap.shape)
    assert overlap.max() < 0.7, [prompt(ROWS[i]) for i in worst]


def test_no_fact_is_there_twice():
    """No answer and no input is repeated, save the answers that are labels and lists to be sorted."""
    outputs = Counter(norm(row["output"]) for row in ROWS if row["task"] not in LABELS)
    assert outputs.most_common(1)[0][1] == 1, outputs.most_common(3)
    inputs = Counter(norm(row["input"]) for row in ROWS if len(row["input"].split()) > 3)
    assert len(inputs) > 300 and inputs.most_common(1)[0][1] == 1, inputs.most_common(3)


@pytest.mark.parametrize("part", ["train", "test", "validation"])
def test_every_kind_is_in_every_part_of_the_book_split(part: str):
    assert {row["task"] for row in book_split()[part]} == set(KINDS)


def test_kinds_are_spread_over_the_file():
    """No kind comes three times in a row, and each kind of the training rows is in both of their halves."""
    tasks = [row["task"] for row in ROWS]
    assert not any(a == b == c for a, b, c in zip(tasks, tasks[1:], tasks[2:], strict=False))
    train = [row["task"] for row in book_split()["train"]]
    half = len(train) // 2
    assert set(train[:half]) == set(train[half:]) == set(KINDS)


def test_every_word_is_in_the_dictionary():
    """All words of all answers, and of all prompts but those that are wrong on purpose, are spelled right."""
    read = 0
    for row in ROWS:
        text = row["output"] if row["task"] in WRONG_ON_PURPOSE else prompt(row) + "\n" + row["output"]
        text = re.sub(r"\b[A-Z]{2,}\b|\b(?:un|in|im|il|ir|dis)-|-(?:er|est)\b", " ", text)
        plain = {re.sub(r"('s|'m|'re|'ve|'ll|'d|n't)$", "", word) for word in words(text)}
        unknown = {w for w in SPELL.unknown(plain) if not SPELL.known([w + "n", w + "n't"])} - PROPER
        assert not unknown, (unknown, row)
        read += len(plain)
    assert read > 10_000


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_right(kind: str):
    """The checker of the kind accepts each of its rows."""
    rows = of_kind(kind)
    for row in rows:
        CHECKS[kind](row)
    assert len(rows) >= 15


@pytest.mark.parametrize("kind", KINDS)
def test_the_checker_refuses_corrupted_rows(kind: str):
    """Nonsense, the prompt itself and the answers of other rows are refused."""
    rows = of_kind(kind)
    tried = swapped = 0
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        assert refuses(row, "Banana."), row
        assert refuses(row, row["input"] or row["instruction"]), row
        if row["output"] != other["output"]:
            tried += 1
            swapped += refuses(row, other["output"])
    assert tried >= 7 and swapped >= 0.9 * tried, (swapped, tried)


NUMERIC = [
    *("arithmetic", "counting", "date_format", "extract_number", "number_to_roman", "percentage"),
    *("roman_to_number", "sequence", "time_to_12h", "time_to_24h", "unit_conversion", "word_problem"),
]


@pytest.mark.parametrize("kind", NUMERIC)
def test_the_checker_refuses_a_changed_digit(kind: str):
    """Every digit of every answer matters."""
    tried = 0
    for row in of_kind(kind):
        for at, char in enumerate(row["output"]):
            if char.isdigit():
                changed = str((int(char) + 1) % 10)
                assert refuses(row, row["output"][:at] + changed + row["output"][at + 1 :]), (row, at)
                tried += 1
    assert tried >= 15


FACTS = [
    *("animal_class", "capital", "chemical_symbol", "comparative", "currency", "part_of_speech", "plural"),
    *("prefix_opposite", "rhyme", "sentence_type", "sentiment", "state_of_matter", "superlative"),
]


@pytest.mark.parametrize("kind", FACTS)
def test_the_checker_refuses_the_answer_of_another_row(kind: str):
    """'The capital of Peru is Nairobi.': the right form with the last words of another row."""
    rows = of_kind(kind)
    tried = 0
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        start, answer = re.fullmatch(r"(.* is )(.+)", row["output"]).groups()
        wrong = re.fullmatch(r".* is (.+)", other["output"])[1]
        if wrong != answer:
            assert refuses(row, start + wrong), (row, wrong)
            tried += 1
    assert tried >= 7
