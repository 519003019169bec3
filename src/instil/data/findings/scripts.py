"""Which scripts texts are written in: what can be said of their languages without guessing."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

# first words of Unicode's names that are no scripts, or not under the name that people use
NAMED = {"CJK": "Han", "KANGXI": "Han", "KATAKANA-HIRAGANA": "Katakana", "FULLWIDTH": "Latin", "FEMININE": "Latin",
         "MASCULINE": "Latin", "MICRO": "Greek", "ANGSTROM": "Latin", "KELVIN": "Latin", "OHM": "Greek"}  # fmt: skip


@lru_cache(maxsize=20_000)
def script(char: str) -> str:
    """The script of a letter by its name in Unicode, or nothing for what is no letter.

    >>> script("a"), script("\\u4f60"), script("\\u0439"), script("1")
    ('Latin', 'Han', 'Cyrillic', '')
    """
    if not char.isalpha():
        return ""
    plain = unicodedata.normalize("NFKC", char)[0]
    first = unicodedata.name(plain, "OTHER").split()[0]
    return NAMED.get(first, first.capitalize())


class Scripts:
    """Counts letters by script."""

    def __init__(self) -> None:
        self._chars: Counter[str] = Counter()

    def add(self, texts: Iterable[str]) -> None:
        """The letters of some texts more."""
        for text in texts:
            self._chars.update(text)

    def shares(self) -> dict[str, float]:
        """Of all letters, the share of each script, the largest first."""
        letters: Counter[str] = Counter()
        for char, count in self._chars.items():
            if name := script(char):
                letters[name] += count
        return {name: round(count / letters.total(), 4) for name, count in letters.most_common()}
