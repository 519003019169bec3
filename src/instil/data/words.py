r"""What a word is, and when two texts are the same: one place for every comparison of texts.

Words follow Unicode (UAX 29): the marks of a letter belong to it (vowel signs, points, tones), and so do the joiners
between letters. Where a script is written without spaces (`SPACELESS`), every character, as a reader sees it (an
extended grapheme cluster), is a word of its own: UAX 29 leaves those to dictionaries. So is an emoji.
Unlike there, words end at apostrophes and points ("it's" is two), as in ``\w+``: the figures of English rows are those
of such words.

Texts are compared in one normal form (NFC), so that a letter with its accent is the same in one piece and in two.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import regex

from instil.records import Example

SPACELESS = (
    "Han Hiragana Katakana Bopomofo Thai Lao Khmer Myanmar Tai_Le New_Tai_Lue Tai_Tham Tai_Viet Javanese Balinese Yi "
    "Nushu Tangut Ahom Khitan_Small_Script"
).split()
MINUS = "-\u2212\ufe63\uff0d\u2010\u2011"  # hyphens and minus signs, small, wide and unbreakable ones, too
_CHARACTER = "[[" + "".join(rf"\p{{Script_Extensions={name}}}" for name in SPACELESS) + r"]&&\p{L}]"
_PICTURE = r"(?=[\p{Extended_Pictographic}\p{Regional_Indicator}])\X"
_MINUS = rf"\-{MINUS[1:]}"  # within a set
_LETTER = r"[\p{L}\p{N}_]"
_JOINERS = r"[\u200c\u200d](?=\p{L})"
_BEFORE_SIGN = rf"(?<![\p{{L}}\p{{N}}\p{{M}}_)\]}}%°{_MINUS}])"
SIGNED = rf"{_BEFORE_SIGN}[{_MINUS}](?=\p{{Nd}})"  # a minus that belongs to the number after it: none in "2-5"
_WORD = regex.compile(
    rf"(?={_CHARACTER})\X\p{{M}}*|{_PICTURE}|(?:{SIGNED})?[{_LETTER}--{_CHARACTER}](?:[[\p{{L}}\p{{N}}\p{{M}}_]--{_CHARACTER}]|{_JOINERS})*",
    regex.V1,
)
_UNSEEN = regex.compile(
    r"[\u00ad\u0640\ufe0e\ufe0f\u061c\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)  # they shape lines, not words
_TOKEN = regex.compile(
    rf"(?:(?={_CHARACTER})\X\p{{M}}*|{_PICTURE}|[[\w\p{{M}}\p{{N}}\u200c\u200d]--{_CHARACTER}]+|[^\w\p{{M}}\p{{N}}\u200c\u200d\s])\s*|\s+",
    regex.V1,
)
_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)
_SYMBOL = regex.compile(r"(?!\s)\X")
_NEITHER_WORD_NOR_SPACE = regex.compile(r"[^\w\p{M}\p{N}\s]")
_NOT_ASCII = regex.compile(r"[^\x00-\x7f]")
_ASCII_SIGNS = "".join(_NEITHER_WORD_NOR_SPACE.findall("".join(map(chr, range(128))))).encode("ascii")
_FOREIGN = regex.compile(r"[\p{L}--\p{Latin}]", regex.V1)
_OF_A_WORD = regex.compile(r"\p{L}")


def normal(text: str) -> str:
    """A text as all comparisons see it (NFC).

    >>> normal("Cafe\\u0301") == "Caf\\u00e9"
    True
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def prompt_of(example: Example) -> tuple[str, str]:
    """What a row asks, as it is compared with what others ask; of a text without a question the text."""
    return normal(example.instruction or example.output).strip(), normal(example.about).strip()


def folded(text: str) -> str:
    """The same without case (Unicode's canonical caseless matching), and with 0 to 9 for every script's digits."""
    if text.isascii():
        return text.lower()
    return plain_digits(unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold()))


def plain_digits(text: str) -> str:
    """A text with 0 to 9 for the digits of every script, character by character.

    >>> plain_digits("\\u0661\\u0665 \\uff12 x\\u00b2")
    '15 2 x²'
    """
    return text if text.isascii() else _DIGIT.sub(lambda match: str(unicodedata.decimal(match.group())), text)


def same(one: str, other: str) -> bool:
    """Whether two texts are equal but for white space around and normal form; case is kept."""
    return normal(one).strip() == normal(other).strip()


def words(text: str) -> list[str]:
    """Words without case.

    >>> words("It's 4x!"), words("दिन दिया"), words("猫がいる")
    (['it', 's', '4x'], ['दिन', 'दिया'], ['猫', 'が', 'い', 'る'])
    >>> words("2-5 is -3")
    ['2', '5', 'is', '-3']
    """
    return [as_word(word) for word in _WORD.findall(_UNSEEN.sub("", folded(text)))]


def cased_words(text: str) -> list[tuple[str, str]]:
    """Words as they are written, each with all that stands before it."""
    text = _UNSEEN.sub("", plain_digits(normal(text)))
    return [(match.group(), text[: match.start()]) for match in _WORD.finditer(text)]


def tokens(text: str) -> list[str]:
    """Words and signs as they are written, each with the space after it; together they are the text.

    >>> tokens("It's \\u0939\\u093f."), tokens("\\u732b \\u306f")
    (['It', "'", 's ', 'हि', '.'], ['猫 ', 'は'])
    """
    return [match.group() for match in _TOKEN.finditer(text)]


def as_word(word: str) -> str:
    """A word with its sign, if it has one, as a hyphen."""
    return f"-{word[1:]}" if word[0] in MINUS else word


def units(one: str, other: str) -> tuple[list[str], list[str]]:
    """What two texts are compared by: their words, or their characters where neither has a word ("+", "\U0001f600")."""
    both = words(one), words(other)
    if any(both):
        return both
    return _SYMBOL.findall(normal(one)), _SYMBOL.findall(normal(other))


def without_punctuation(text: str) -> str:
    """Letters with their marks, digits and white space of a text, without case."""
    if not text.isascii() and all(map(_vanishes, set(_NOT_ASCII.findall(text)))):  # such as quotation marks
        text = _NOT_ASCII.sub("", text)
    if text.isascii():
        return text.lower().encode("ascii").translate(None, _ASCII_SIGNS).decode("ascii")
    return str(_NEITHER_WORD_NOR_SPACE.sub("", folded(text)))


@lru_cache(maxsize=10_000)
def _vanishes(char: str) -> bool:
    """Whether nothing is left of a character without punctuation, whatever stands around."""
    alone = unicodedata.category(char)[0] in "PS" and unicodedata.normalize("NFD", char) == char
    return alone and not unicodedata.combining(char) and not _NEITHER_WORD_NOR_SPACE.sub("", folded(char))


def mostly_other_scripts(texts: list[str]) -> bool:
    """Whether most of these texts are mostly in other letters than Latin ones; texts without a letter do not count."""
    lettered = [(len(_FOREIGN.findall(text)), len(found)) for text in texts if (found := _OF_A_WORD.findall(text))]
    foreign = sum(2 * other > every for other, every in lettered)
    return 2 * foreign > len(lettered)
