"""Text that knows where each of its characters comes from: from a template, or from a field of some message.

`Tracked` is a `str`, so that a template's own decisions (``"x" in content``, ``content.startswith(...)``) are what they
are for plain text; what is made of it by adding, cutting, stripping, splitting, joining and formatting keeps the origin
of every character, and whatever else is made of it counts as the user's as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

Origin = tuple[int, str]  # the number of a message (-1: the tools) and its field
Runs = tuple[tuple[int, Origin | None], ...]  # how many characters come from where; None is the template itself

_PERCENT = re.compile(r"%(?:\((\w+)\))?([^a-zA-Z%]*)([a-zA-Z%])")


class Tracked(str):
    """A text with the origin of each character.

    >>> text = "<b>" + Tracked.of(" Hi ", (0, "content")).strip() + "</b>"
    >>> text, text.runs
    ('<b>Hi</b>', ((3, None), (2, (0, 'content')), (4, None)))
    """

    __slots__ = ("runs",)
    runs: Runs

    def __new__(cls, text: str, runs: Runs = ()) -> Tracked:
        made = str.__new__(cls, text)
        made.runs = runs
        return made

    @staticmethod
    def of(text: str, origin: Origin | None) -> Tracked:
        """A text of one origin."""
        return Tracked(text, ((len(text), origin),) if text else ())

    def __str__(self) -> Tracked:
        return self

    @property
    def plain(self) -> str:
        """The text alone."""
        return str.__getitem__(self, slice(0, len(self)))

    def __add__(self, other: str) -> Tracked:
        if not isinstance(other, str):
            return NotImplemented
        return Tracked(str.__add__(self, other), _joined((self.runs, runs_of(other))))

    def __radd__(self, other: str) -> Tracked:
        if not isinstance(other, str):
            return NotImplemented
        return Tracked(str.__add__(other, self), _joined((runs_of(other), self.runs)))

    def __mul__(self, times: SupportsIndex) -> Tracked:
        return Tracked(str.__mul__(self, times), _joined([self.runs] * int(times)))

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return percent_formatted(self, values)

    def __getitem__(self, key: SupportsIndex | slice) -> Tracked:
        places = range(len(self))[key]
        if isinstance(places, int):
            places = range(places, places + 1)
        if len(places) > 1 and places.step != 1:
            origins = [origin for length, origin in self.runs for _ in range(length)][places.start : None : places.step]
            runs = _joined([((1, origin),) for origin in origins[: len(places)]])
            return Tracked(str.__getitem__(self, key), runs)
        if not places:
            return Tracked("")
        return Tracked(
            str.__getitem__(self, slice(places[0], places[-1] + 1)), self._between(places[0], places[-1] + 1)
        )

    def __iter__(self) -> Iterator[Tracked]:
        return (self[at] for at in range(len(self)))

    def _between(self, start: int, end: int) -> Runs:
        found, at = [], 0
        for length, origin in self.runs:
            first, last = max(at, start), min(at + length, end)
            if first < last:
                found.append((last - first, origin))
            at += length
        return tuple(found)

    def strip(self, chars: str | None = None, /) -> Tracked:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Tracked:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> Tracked:
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix: str, /) -> Tracked:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> Tracked:
        return self[: -len(suffix)] if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._apart(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._apart(str.rsplit(self, sep, maxsplit), sep)

    def _apart(self, texts: Sequence[str], sep: str | None) -> list[str]:
        """Parts that follow one another, with the separator between them, or with white space."""
        found: list[str] = []
        at = 0
        for text in texts:
            at = at if sep is not None else str.find(self, text, at)
            found.append(self[at : at + len(text)])
            at += len(text) + len(sep or "")
        return found

    def splitlines(self, keepends: bool = False) -> list[str]:
        found: list[str] = []
        at = 0
        for line, whole in zip(str.splitlines(self, keepends), str.splitlines(self, True), strict=True):
            found.append(self[at : at + len(line)])
            at += len(whole)
        return found

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, middle, _ = str.partition(self, sep)
        end = len(before) + len(middle)
        return self[: len(before)], self[len(before) : end], self[end:]

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, middle, _ = str.rpartition(self, sep)
        end = len(before) + len(middle)
        return self[: len(before)], self[len(before) : end], self[end:]

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Tracked:
        if not old:
            return wholly(str.replace(self, old, new, count), self, new)
        return joined(self.split(old, count), new)

    def join(self, parts: Iterable[str], /) -> Tracked:
        return joined(list(parts), self)

    def format(self, *args: Any, **kwargs: Any) -> str:
        raise TypeError("a tracked text is formatted by its template")

    format_map = format


def _derived(name: str) -> Callable[..., Tracked]:
    own: Callable[..., str] = getattr(str, name)

    def method(self: Tracked, *args: Any, **kwargs: Any) -> Tracked:
        made = own(self, *args, **kwargs)
        return Tracked(made, self.runs) if len(made) == len(self) else wholly(made, self, *args)

    method.__name__ = name
    return method


# What is as long as before keeps its origins.
for _name in ("capitalize", "casefold", "lower", "swapcase", "title", "upper", "center", "ljust", "rjust", "zfill"):
    setattr(Tracked, _name, _derived(_name))


def runs_of(text: str) -> Runs:
    """Where the characters of a text come from; plain text is the template's."""
    if isinstance(text, Tracked):
        return text.runs
    return ((len(text), None),) if text else ()


def _joined(parts: Iterable[Runs]) -> Runs:
    found: list[tuple[int, Origin | None]] = []
    for runs in parts:
        for length, origin in runs:
            if found and found[-1][1] == origin:
                found[-1] = (found[-1][0] + length, origin)
            else:
                found.append((length, origin))
    return tuple(found)


def joined(parts: Sequence[str], between: str = "") -> Tracked:
    """Texts after one another, each with its origins.

    >>> joined(["a", Tracked.of("b", (1, "content"))], ", ").runs
    ((3, None), (1, (1, 'content')))
    """
    runs = [runs_of(part) for part in parts]
    if between and len(runs) > 1:
        middle = runs_of(between)
        runs = [one for run in runs for one in (middle, run)][1:]
    return Tracked(str.join(between, parts), _joined(runs))


def tracked_in(value: Any, depth: int = 0) -> Origin | None:
    """The first origin in a value, or in what it holds, that is not the template."""
    if isinstance(value, Tracked):
        return next((origin for _, origin in value.runs if origin is not None), None)
    if depth > 50:
        return None
    if isinstance(value, Mapping):
        held: Iterable[Any] = (one for pair in value.items() for one in pair)
    elif isinstance(value, list | tuple | set):
        held = value
    else:
        return None
    return next((found for one in held if (found := tracked_in(one, depth + 1)) is not None), None)


def wholly(text: str, *sources: Any) -> Tracked:
    """A text of which no more is known than what it was made of: one origin of these, if there is any."""
    return Tracked.of(text, tracked_in(sources))


def percent_formatted(form: str, values: Any) -> str:
    """``form % values``, with the origins where each conversion is a plain ``%s``."""
    made = str.__mod__(form, values)  # raises what it raises
    parts: list[str] = []
    at = taken = 0
    source = Tracked(form, runs_of(form))
    given = values if isinstance(values, tuple) else (values,)
    for match in _PERCENT.finditer(form):
        name, flags, kind = match.groups()
        parts.append(source[at : match.start()])
        at = match.end()
        if kind == "%":
            parts.append("%")
            continue
        if kind != "s" or flags:
            return wholly(made, form, values)
        value = values[name] if name else given[taken]
        taken += not name
        parts.append(value if isinstance(value, str) else wholly(str(value), value))
    found = joined([*parts, source[at:]])
    return found if found == made else wholly(made, form, values)
