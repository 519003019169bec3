"""Text that knows where it comes from: equal to plain text in every way, and right about every character."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.data.templates.tracked import Origin, Tracked, joined, percent_formatted, runs_of, tracked_in

USER: Origin = (3, "content")
LETTERS = st.text("ab \n,", max_size=12)


def origins(text: str) -> list[Origin | None]:
    """The origin of every character."""
    return [origin for length, origin in runs_of(text) for _ in range(length)]


def marked(text: str, start: int) -> tuple[Tracked, list[tuple[str, Origin]]]:
    """A text in which every character has an origin of its own."""
    each = [(letter, (start + number, "c")) for number, letter in enumerate(text)]
    return joined([Tracked.of(letter, origin) for letter, origin in each]), each


CUTS: dict[str, Callable[[Any], Any]] = {
    "strip": lambda text: text.strip(),
    "strip a": lambda text: text.strip("a"),
    "lstrip": lambda text: text.lstrip("\n "),
    "rstrip": lambda text: text.rstrip(),
    "slice": lambda text: text[1:-2],
    "steps": lambda text: text[::-2],
    "index": lambda text: text[len(text) // 2 : len(text) // 2 + 1],
    "split": lambda text: text.split(),
    "split once": lambda text: text.split(None, 1),
    "split a": lambda text: text.split("a"),
    "split ab": lambda text: text.split("ab", 1),
    "rsplit": lambda text: text.rsplit(None, 1),
    "rsplit a": lambda text: text.rsplit("a", 2),
    "lines": lambda text: text.splitlines(),
    "whole lines": lambda text: text.splitlines(True),
    "partition": lambda text: text.partition("b"),
    "rpartition": lambda text: text.rpartition("b"),
    "removeprefix": lambda text: text.removeprefix("a"),
    "removesuffix": lambda text: text.removesuffix("b"),
    "letters": list,
    "upper": lambda text: text.upper(),
    "twice": lambda text: text * 2,
}


@given(LETTERS)
@pytest.mark.parametrize("cut", CUTS)
def test_what_is_cut_keeps_the_origin_of_every_letter(cut: str, text: str) -> None:
    whole, each = marked(text, 0)
    found, wanted = CUTS[cut](whole), CUTS[cut](text)
    parts = [found] if isinstance(found, str) else list(found)
    assert [str.__str__(part) for part in parts] == ([wanted] if isinstance(wanted, str) else list(wanted))
    for part in parts:
        assert len(origins(part)) == len(part)
        for letter, origin in zip(part.lower(), origins(part), strict=True):
            assert origin is not None and each[origin[0]][0] == letter
    at = [origin[0] for part in parts for origin in origins(part) if origin is not None]
    if cut != "twice":
        assert at == sorted(set(at), reverse=cut == "steps")


@given(LETTERS, LETTERS, LETTERS)
def test_what_is_put_together_keeps_the_origins_of_all(first: str, second: str, between: str) -> None:
    one, other = marked(first, 0)[0], marked(second, 100)[0]
    plus = one + between + other
    assert plus == first + between + second
    assert origins(plus) == [*origins(one), *[None] * len(between), *origins(other)]
    assert origins(between + one) == [*[None] * len(between), *origins(one)]
    assert joined([one, other], between) == f"{first}{between}{second}"
    assert origins(joined([one, other], between)) == origins(plus)
    assert origins(percent_formatted("<%s|%s>", (one, other))) == [None, *origins(one), None, *origins(other), None]
    replaced = one.replace("a", other)
    assert replaced == first.replace("a", second)
    kept = [origin for origin in origins(replaced) if origin is not None and origin[0] < 100]
    assert kept == [origin for letter, origin in zip(first, origins(one), strict=True) if letter != "a"]


def test_what_is_not_followed_is_the_users_as_a_whole() -> None:
    name = Tracked.of("ann", USER)
    assert percent_formatted("<%5s>", name) == "<  ann>"
    assert origins(percent_formatted("<%5s>", name)) == [USER] * 7
    assert tracked_in({"a": [1, {"b": name}]}) == tracked_in({name: 1}) == USER
    assert tracked_in(["a", {"b": 1}]) is None


def test_a_tracked_text_is_a_text() -> None:
    name = Tracked.of("ann", USER)
    assert {"ann": 1}[name] == 1 and name == "ann" and hash(name) == hash("ann") and str(name) is name
    assert type(name.plain) is str and name.plain == "ann"
