"""How long a server asks to wait, in every way that servers say it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

LONGEST = 1e15  # of a number of seconds; beyond any date
A_MOMENT = 1e8  # seconds from which on a number is a moment, counted since 1970
SOON = 120.0  # seconds up to which the reset of a limit is waited for that is not said to be used up

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = (
    r"[0-9]{1,9}(?:\.[0-9]{1,9})? ?(?:milliseconds?|millis|msecs?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h"
    r"|days?|d)(?![a-z])"
)
_PARTS = re.compile(r"(?P<n>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[a-z]+)")
_DURATION = rf"{_PART}(?:,? ?(?:and )?{_PART}){{0,3}}"
_SAID = re.compile(
    r"(?:\btry(?:ing)? (?:your request |it )?again (?:later,? )?(?:in|after)(?: about)?"
    r"|\bretry(?:ing)? (?:your request |again |it )?(?:in|after)"
    r"|\bwait(?:ing)?(?: for)?(?: at least| about)?|\bavailable (?:again )?in|\b(?:resets?|allowed|ready) (?:in|after)"
    r"|\bestimated_time[\"']?[:=]|\bcool-?down[\"']?[:=]?"
    r"|\bretry_?-?delay[\"']?[:=]|\bretry_?-?after(?:_seconds|_?ms)?[\"']?[:=])"
    rf"[ \"':]*(?P<span>{_DURATION}|[0-9]{{1,9}}(?:\.[0-9]{{1,9}})?)",
    re.IGNORECASE,
)


def asked_wait(head: Mapping[str, str], said: str = "") -> float:
    """Seconds that a server asks to wait: by ``retry-after-ms``, ``Retry-After``, in words, or by a limit's reset.

    Args:
        head: the reply's headers; names in any case.
        said: what the reply says, as it came.

    >>> asked_wait({"Retry-After": "1.5"}), asked_wait({}, "Please try again in 1m2s."), asked_wait({}, "later")
    (1.5, 62.0, 0.0)
    """
    given = {name.lower(): value.strip() for name, value in head.items()}
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (milliseconds := _number(given.get(name, ""))) is not None:
            return milliseconds / 1e3
    for name in ("retry-after", "x-retry-after", "x-ratelimit-reset-after"):
        if (asked := _moment(given.get(name, ""))) is not None:
            return asked
    if match := _SAID.search(said):
        whole = match["span"]
        unit = 1e-3 if re.search(r"after_?-?ms", match[0], re.IGNORECASE) else 1.0
        bare = _number(whole)
        return bare * unit if bare is not None else duration(whole) or 0.0
    return _reset(given)


def duration(text: str) -> float | None:
    """Seconds in ``12s``, ``1m2s``, ``500ms``, ``6m0s``, ``20 seconds``; None for anything else.

    >>> duration("1m2s"), duration("500ms"), duration("1 minute and 5 seconds"), duration("soon")
    (62.0, 0.5, 65.0, None)
    """
    if not re.fullmatch(_DURATION, text.strip(), re.IGNORECASE):
        return None
    return sum(float(part["n"]) * _unit(part["unit"]) for part in _PARTS.finditer(text.lower()))


def _unit(word: str) -> float:
    return _UNITS["ms" if word.startswith(("ms", "milli")) else word[0]]


def _moment(given: str) -> float | None:
    """Seconds from now: a number of them, a duration, or a date."""
    if (seconds := _number(given.lstrip("+"))) is not None:
        since_1970 = seconds / 1e3 if seconds > 1e11 else seconds  # in milliseconds, perhaps
        return max(0.0, since_1970 - time.time()) if seconds > A_MOMENT else seconds
    if (span := duration(given)) is not None:
        return span
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return max(0.0, read(given).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError, IndexError, OSError):
            continue
    return None


def _reset(given: Mapping[str, str]) -> float:
    """When the limits that are used up begin anew; where none is said to be, the one that does so soon."""
    spent: list[float] = []
    others: list[float] = []
    for name, value in given.items():
        match = re.fullmatch(r"(?:x-|[a-z]+-)?rate-?limit(?:-[a-z-]+)?-reset(?:-[a-z-]+)?", name)
        if not match:
            continue
        seconds = _moment(value)
        if seconds is None:
            continue
        left = given.get(name.replace("reset", "remaining"), "")
        (spent if _number(left) == 0 else others).append(seconds)
    if spent:
        return max(spent)
    return max((seconds for seconds in others if seconds <= SOON), default=0.0)


def _number(text: str) -> float | None:
    return min(float(text), LONGEST) if re.fullmatch(r"[0-9]{0,300}\.?[0-9]{1,300}", text, re.ASCII) else None
