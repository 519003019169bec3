"""The leak gate: what it finds in rows whose relatives are known, what it says of them, and what it does with them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from instil.data import leaks as leaks_module
from instil.data.leaks import Leaks, guard
from instil.data.near_duplicates import nearest_of, prompt_text
from instil.data.splits import Split, split_examples, split_in_order
from instil.errors import DataError
from instil.records import Example, Turn
from instil.settings.options import DataOptions

VERBS = ("describe", "paint", "measure", "forget", "borrow", "admire", "repair", "hide", "compare", "lift")
THINGS = ("a quiet harbour", "the old clock", "your best idea", "some fresh bread", "her blue jacket")


def rows(count: int) -> list[Example]:
    """Rows of which no two are near."""
    return [
        Example(f"{VERBS[n % 10].title()} {THINGS[n // 10 % 5]}, number {n * 7919 % 1000}.", f"Answer {n}.", row=n)
        for n in range(count)
    ]


def with_leaks() -> list[Example]:
    """Forty rows, of which 34 are trained on, 4 test and 2 validate: rows 35 and 39 are like rows 3 and 5."""
    found = rows(40)
    found[35] = replace(found[3], instruction=found[3].instruction.upper(), row=35)
    found[39] = replace(found[5], instruction=found[5].instruction.replace(".", " now."), row=39)
    return found


def looked_at(examples: list[Example], **options: object) -> tuple[Split, Leaks]:
    chosen = DataOptions.model_validate(options)
    return guard(split_examples(examples, chosen), chosen)


def test_rows_without_relatives_have_none() -> None:
    split, leaks = looked_at(rows(40))
    assert split == split_in_order(rows(40))
    assert leaks == Leaks(0.9)
    assert leaks.lines() == []


def test_leaks_are_shown_as_pairs_of_texts() -> None:
    split, leaks = looked_at(with_leaks())
    assert [(leak.near.row, leak.near.train_row, leak.part) for leak in leaks.found] == [
        (35, 3, "test"),
        (39, 5, "validation"),
    ]
    assert leaks.of("test")[0].cosine == 1.0
    assert 0.9 <= leaks.of("validation")[0].cosine < 1.0
    test, validation = leaks.lines()
    assert test.splitlines()[0].startswith("1 test row is nearly the same as a training row: 35 (like 3)")
    assert "data.leaks=drop" in test
    assert test.splitlines()[1:] == [
        "    test row 35     FORGET A QUIET HARBOUR, NUMBER 757.",
        "    training row 3  Forget a quiet harbour, number 757.  (cosine 1.00)",
    ]
    assert "admire a quiet harbour, number 595 «now»." in validation.lower()
    assert leaks.as_json()["held_out"][1]["train_text"] == prompt_text(split.train[5]).strip()
    assert leaks.as_json()["counts"]["held_out"] == 2


def test_many_leaks_are_few_lines() -> None:
    found = rows(400)
    found[340:380] = [replace(row, row=340 + n) for n, row in enumerate(found[:40])]
    line = looked_at(found)[1].lines()[0]
    assert line.startswith("40 test rows are nearly the same as training rows: 340 (like 0)")
    assert line.count("\n") == 7  # three pairs, and how many more
    assert line.endswith("... and 37 more")
    assert "(equal)" in line


def test_training_rows_that_leak_are_dropped_with_a_reason() -> None:
    given = with_leaks()
    given[7] = replace(given[3], instruction=f"{given[3].instruction}!", row=7)  # a second one like row 35
    split, leaks = looked_at(given, leaks="drop")
    assert [row.row for row in split.train] == [n for n in range(34) if n not in (3, 5, 7)]
    assert (split.test, split.validation) == (tuple(given[34:38]), tuple(given[38:]))
    assert [row for row, _ in leaks.dropped] == [3, 5, 7]
    assert leaks.dropped[0][1] == "nearly the same as test row 35 (cosine 1.00), data.leaks=drop"
    assert "validation row 39" in leaks.dropped[1][1]
    assert leaks.found == ()
    assert leaks.repeated == leaks.alike == ()  # row 7 was like row 3, and both are gone
    assert "3 training rows left out for being nearly a held-out row (data.leaks=drop): 3, 5, 7" in leaks.lines()


def test_nothing_is_dropped_where_nothing_leaks() -> None:
    assert looked_at(rows(40), leaks="drop") == looked_at(rows(40))
    assert looked_at(rows(40), leaks="refuse") == looked_at(rows(40))


def test_dropping_everything_is_refused() -> None:
    same = [Example("Say hello.", "Hello.", row=n) for n in range(40)]
    none = r"each of the 34 training rows .* would leave none to train on"
    with pytest.raises(DataError, match=f"{none}; they say the same .* at any data.leak_threshold; set data.leaks"):
        looked_at(same, leaks="drop")  # no threshold would tell them apart
    form = "Say hello to the old man who lives in the house at the end of the long road, number {}."
    alike = [Example(form.format(n), "Hello.", row=n) for n in range(40)]
    with pytest.raises(DataError, match=f"{none}; raise data.leak_threshold"):
        looked_at(alike, leaks="drop")


def test_of_many_leaks_the_first_thousand_of_each_part_have_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks_module, "LISTED", 2)
    found = rows(400)
    for start in (340, 380):
        found[start : start + 5] = [replace(row, row=start + n) for n, row in enumerate(found[:5])]
    _, leaks = looked_at(found)
    assert [(leak.near.row, bool(leak.text)) for leak in leaks.found] == [
        (start + n, n < 2) for start in (340, 380) for n in range(5)
    ]
    test, validation = leaks.lines()[:2]
    for line, part, start in ((test, "test", 340), (validation, "validation", 380)):
        assert line.startswith(f"5 {part} rows are nearly")
        assert f"{part} row {start + 1}" in line
        assert line.endswith("... and 2 more")
    assert leaks.as_json()["counts"]["held_out"] == 10
    assert [one["row"] for one in leaks.as_json()["held_out"]] == [340, 341]


def test_leaks_are_refused_with_their_texts() -> None:
    with pytest.raises(DataError) as refused:
        looked_at(with_leaks(), leaks="refuse")
    said = str(refused.value)
    assert said.startswith("2 held-out rows are nearly training rows, and data.leaks=refuse:\n")
    assert "FORGET A QUIET HARBOUR, NUMBER 757." in said
    assert "training row 5" in said
    assert "data.split=grouped" in said


BILL = "Describe how a bill becomes a law in the United States"
NEARER, FARTHER = f"{BILL}, in brief words", f"{BILL}, in only three lines"


def test_the_threshold_is_nine_tenths_from_both_sides() -> None:
    """Two held-out prompts, a hair nearer and a hair farther than nine tenths."""
    train = [Example(f"{BILL}.", row=0), *(replace(row, row=row.row + 1) for row in rows(30))]
    held_out = [Example(NEARER, row=31), Example(FARTHER, row=32)]
    texts = [prompt_text(row) for row in (*train, *held_out)]
    cosines, nearest = nearest_of(texts[:31], texts[31:])
    assert nearest == [0, 0]
    assert 0.9 <= cosines[0] < 0.91
    assert 0.885 < cosines[1] < 0.9
    split = Split("book", tuple(train), tuple(held_out), ())

    def leaking(options: DataOptions) -> list[int]:
        return [leak.near.row for leak in guard(split, options)[1].found]

    assert leaking(DataOptions()) == [31]
    assert leaking(DataOptions(leak_threshold=0.885)) == [31, 32]
    assert leaking(DataOptions(leak_threshold=0.91)) == []


def test_training_rows_among_themselves() -> None:
    given = rows(40)
    given[10] = replace(given[2], row=10)  # says all that row 2 says
    given[11] = replace(given[4], output="Something else.", row=11)  # contradicts row 4
    given[12] = replace(given[6], instruction=given[6].instruction.replace(".", " now."), row=12)
    given[13] = replace(given[6], instruction=given[6].instruction.lower(), row=13)
    _, leaks = looked_at(given)
    assert [(one.row, one.like) for one in leaks.repeated] == [(10, 2)]
    assert [(one.row, one.like) for one in leaks.contradicting] == [(11, 4)]
    assert [(one.row, one.like) for one in leaks.alike] == [(12, 6), (13, 6)]
    assert leaks.found == ()
    contradicts, repeats, alike = leaks.lines()
    assert contradicts.splitlines() == [
        "1 training row asks what an earlier one asks and answers otherwise: 11 (like 4)",
        "    row 11  «Something else».",
        "    row 4   «Answer 4».",
    ]
    assert repeats == "1 training row says what an earlier one says word for word: 10 (like 2)"
    assert alike.splitlines()[0] == "2 training rows ask nearly what an earlier one asks: 12 (like 6), 13 (like 6)"


def test_texts_without_a_question_contradict_none() -> None:
    written = [
        Example("", f"{word} is a text of its own.", row=at) for at, word in enumerate(["This", "Zebra", "This"])
    ]
    _, leaks = guard(Split("book", tuple(written), (), ()), DataOptions())
    assert not leaks.contradicting
    assert [(twin.row, twin.like) for twin in leaks.repeated] == [(2, 0)]


def test_conversations_are_compared_by_all_that_was_said_before() -> None:
    """The last question alone is the same in each of them; what the system says tells none from another."""
    system = Turn("system", "You are a helpful assistant who never tires of answering questions, however odd they are.")

    def asking(row: int, first: str) -> Example:
        return Example("And why?", "So.", row=row, history=(system, Turn("user", first), Turn("assistant", "Yes.")))

    given = [asking(n, row.instruction) for n, row in enumerate(rows(40))]
    assert looked_at(given)[1].found == ()
    given[35] = asking(35, given[3].history[1].content)
    assert [leak.near.train_row for leak in looked_at(given)[1].found] == [3]


def test_texts_that_steer_a_terminal_do_not() -> None:
    given = with_leaks()
    for at in (3, 35):
        given[at] = replace(given[at], input="\x1b[2J red \x07", output="x")
    assert not any(ord(char) < 32 and char != "\n" for line in looked_at(given)[1].lines() for char in line)


def test_a_grouped_split_leaves_nothing_to_find() -> None:
    split, leaks = looked_at(with_leaks(), split="grouped")
    assert leaks.found == ()
    homes = {row.row: part for part in ("train", "test", "validation") for row in split.part(part)}
    assert len(homes) == 40
    assert (homes[3], homes[5]) == (homes[35], homes[39])
