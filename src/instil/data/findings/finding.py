"""One thing that was found in rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
NAMED = 10  # row numbers in a sentence
KEPT = 1000  # row numbers in a finding


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found: in which rows, how bad it is, and what to do about it.

    An *error* means that the rows cannot teach what they are for, a *warning* that they teach something besides or have
    rows to look at, and a *note* is a fact. Of very many rows the first thousand are named;
    ``count`` is how many there are.
    """

    kind: str
    severity: Severity
    said: str
    remedy: str = ""
    rows: tuple[int, ...] = ()
    count: int = 0

    def line(self) -> str:
        """For people."""
        return f"{self.severity}: {self.said}{f'; {self.remedy}' if self.remedy else ''}"

    def as_json(self) -> dict[str, Any]:
        """For ``--json``, with the rows' numbers."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "said": self.said,
            "remedy": self.remedy,
            "rows": list(self.rows),
            "count": self.count or len(self.rows),
        }


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, and otherwise as they came."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def named(rows: Sequence[int]) -> str:
    """Row numbers, the first ten of them.

    >>> named([3]), named(range(12))
    ('row 3', 'rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...')
    """
    more = ", ..." if len(rows) > NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:NAMED]))}{more}"


def quoted(text: str, longest: int = 40) -> str:
    r"""A text to be read in one line: its beginning, in quotation marks, with what does not show written out.

    >>> print(quoted("a\nb\u200b"), quoted("much too long", 8))
    "a\nb\u200b" "much too..."
    """
    shown = "".join(char if char.isprintable() and char != "\\" else _escaped(char) for char in text[:longest])
    return f'"{shown}{"..." if len(text) > longest else ""}"'


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")
