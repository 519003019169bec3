"""Rows that begin alike are computed together: all of them, never too many at once, in the fewest positions."""

from __future__ import annotations

import random

import pytest

from instil.data import together as module
from instil.data.collate import RowCollator
from instil.data.subset import Subset
from instil.data.together import groups_of, order_of, together
from instil.records import Encoded

PADDED, SHARED = RowCollator(0, None, "padded"), RowCollator(0)


def encoded(prefix: int, own: int, number: int, salt: int = 0) -> Encoded:
    ids = (*range(salt, salt + prefix), *(5000 + 100 * number + at for at in range(own)))
    return Encoded(ids, (True,) * len(ids), row=number)


def several_prompts(count: int) -> list[Encoded]:
    """Three prompts of 300 ids, in turn."""
    return [encoded(300, 50, number, salt=1000 * (number % 3)) for number in range(count)]


def taken(rows: list[Encoded], size: int, collate: RowCollator = SHARED) -> int:
    return sum(collate.positions(rows[at : at + size]) for at in range(0, len(rows), size))


def asked(
    rows: object, *, least: int = 8, collate: RowCollator = SHARED, longest: int = 350
) -> tuple[list[Encoded], int]:
    found, count = together(
        rows, collate.positions, lambda row: row.ids, least=least, longest=longest, padded=collate is PADDED
    )
    return list(found), count


def test_rows_of_several_prompts_stand_with_their_own_kind() -> None:
    rows = several_prompts(60)
    found, count = asked(rows)
    assert sorted(row.row for row in found) == list(range(60))
    assert count > 8 and taken(found, count) < 0.45 * taken(rows, 8)
    assert max(SHARED.positions(found[at : at + count]) for at in range(0, 60, count)) <= module.MOST


def test_rows_without_anything_in_common_go_through_as_before() -> None:
    rows = [encoded(0, 100, number) for number in range(40)]
    assert asked(rows)[1] == 10  # 1,024 positions
    assert asked(rows, least=20)[1] == 20
    assert asked(rows, collate=PADDED)[1] == 10
    assert asked([encoded(0, 2, 0)])[1] == 8


def test_where_nothing_is_shared_by_the_layout_beginnings_count_for_nothing() -> None:
    rows = several_prompts(40)
    found, count = asked(rows, collate=PADDED)
    assert found == rows and count == 8


def test_very_many_rows_keep_their_order_and_the_first_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    alike, rows = [encoded(300, 50, number) for number in range(60)], several_prompts(60)
    assert asked(Subset(rows, range(60))) == asked(rows) != (rows, asked(rows)[1])  # wherever they lie
    monkeypatch.setattr(module, "SORTED", 59)
    for lying in (alike, Subset(alike, range(60))):
        found, count = asked(lying)
        assert found == alike and 8 < count <= module.MOST // 350
    assert asked(rows)[0] == rows
    monkeypatch.setattr(module, "LOOKED_AT", 1)
    assert asked(alike)[1] == 8  # one row says nothing


def test_long_rows_among_short_ones_are_not_too_many_at_once() -> None:
    rows = [encoded(300, 20 if number < 50 else 900, number) for number in range(60)]
    found, count = asked(rows, least=2, longest=1200)
    assert max(SHARED.positions(found[at : at + count]) for at in range(0, 60, count)) <= module.MOST
    assert count > 2


@pytest.mark.parametrize("padded", [False, True])
def test_every_row_is_in_one_group_and_none_is_too_large(padded: bool) -> None:
    draw = random.Random(1)
    for _ in range(200):
        rows = [
            encoded(draw.choice([0, 1, 40, 300]), draw.randint(2, 60), number, salt=draw.choice([0, 1000]))
            for number in range(draw.randint(0, 40))
        ]
        least, most = draw.choice([1, 4, 16]), draw.choice([10, 700, 8192])
        collate = PADDED if padded else SHARED
        order = order_of([row.ids for row in rows])
        alone = [(rows[at].ids, collate.positions([rows[at]])) for at in order]
        groups = groups_of(alone, least=least, padded=padded, most=most)
        assert [at for group in groups for at in group] == list(range(len(rows)))
        for group in groups:
            here = [rows[order[at]] for at in group]
            extra = 0 if padded else module.TIMES * len(here) + 16 * len(here)  # what is not worth being set together
            assert len(here) == 1 or collate.positions(here) <= most + extra


def test_rows_that_are_the_same_throughout() -> None:
    row = encoded(5, 5, 1)
    assert groups_of([(row.ids, 9)] * 30, least=4) == [range(30)]
    assert max(map(len, groups_of([(row.ids, 9)] * 2000, least=4))) == module.ROWS
    assert asked([row] * 600)[1] <= module.ROWS
    assert groups_of([], least=4) == []


def test_a_row_that_begins_another() -> None:
    """As a conversation does that is there once more with a further turn."""
    turns = [Encoded(tuple(range(length)), (True,) * length, row=length) for length in (40, 2, 20, 80, 41)]
    for rows in (turns, turns[::-1]):
        found, count = asked(rows, least=2)
        assert [row.row for row in found] == [2, 20, 40, 41, 80] and taken(found, count) < 90


def test_keys_and_values_of_many_short_rows_behind_a_long_beginning_are_not_too_many() -> None:
    """Attention copies what is shared for each row."""
    rows = [encoded(2000, 4, number) for number in range(300)]
    found, count = asked(rows, longest=2004)
    assert count > 8 and 2003 * count <= module.KEYS
    alone = [(row.ids, SHARED.positions([row])) for row in found]
    assert max(map(len, groups_of(alone, least=8))) * 2003 <= module.KEYS
    assert max(map(len, groups_of(alone, least=100))) >= 100  # as many as a step has
