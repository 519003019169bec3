"""Where rows stand, kept as runs: whatever the order of places, each row's comes back, also from a file."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.data.shapes.origins import Origins

PLACES = st.lists(
    st.one_of(
        st.builds(lambda name, kind, number: f"{name} {kind} {number}", st.sampled_from(["a b.csv", "c"]),
                  st.sampled_from(["line", "row"]), st.integers(0, 5)),
        st.sampled_from(["", "nowhere", "line two"]),
    ),
    max_size=20,
)  # fmt: skip


@given(PLACES)
def test_each_place_comes_back(places: list[str]) -> None:
    origins = Origins()
    for row, where in enumerate(places):
        origins.add(row, where)
    again = Origins.from_text(json.loads(json.dumps(origins.as_text())))
    wanted = [where if where[-1:].isdecimal() else "" for where in places]
    for found in (origins, again):
        assert [found.of(row) for row in range(len(places))] == wanted
        assert [found.of(row) for row in (-1, len(places), len(places) + 5)] == ["", "", ""]


def test_many_rows_are_few_runs() -> None:
    origins = Origins()
    for row in range(20_000):
        origins.add(row, f"rows.jsonl line {row + 1 + row // 5_000}")
    assert origins.of(19_999) == "rows.jsonl line 20003"
    assert len(json.dumps(origins.as_text())) < 300


@pytest.mark.parametrize("kept", [None, [], 3, [["a"], 3], [["a"], 3, "x", "y", "z"], [[], 0, "", "", ""], "abc",
                                  [[], 1, *Origins().as_text()[2:4], "eJxjYGBgAAAABAAB"]])  # fmt: skip
def test_what_is_no_such_text_is_refused(kept: object) -> None:
    with pytest.raises(ValueError):  # whatever it is, it is read again
        Origins.from_text(kept)
