r"""Ids of plain text word by word.

A byte-level vocabulary cuts a text into words by a regular expression, and each word into ids by itself. Words come
again and again, so it is enough to find them and look their ids up: several times as fast as the whole pipeline, which
keeps offsets and alignments on its way. Plain text is printable ASCII, with tabs and new lines; another character
is cut at as at the plain one of its kind, which the pipeline is asked about once. What is cut otherwise (other
vocabularies, texts that a normalizer changes or that hold an added token) goes through the pipeline.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from instil.data.byte_level import PRE_TOKENIZERS, WRITTEN_ELSEWHERE, plain_pattern
from instil.data.panics import panics_as_errors
from instil.errors import ModelError

PATIENCE = 1.0  # seconds for the words of one text
MOST_WORDS = 400_000  # kept with their ids, some 100 MB; then they are looked for anew
PROBES = 300
HEAD, EVERY = 32, 8  # characters that a common beginning has at least; it is looked for after so many texts without one
_NOT_PLAIN = re.compile(r"[^\t\n\r\x20-\x7e]")
_PLAIN = bytes([*b"\t\n\r", *range(0x20, 0x7F)])
_SAME_IN_ASCII = {"NFC", "NFD", "NFKC", "NFKD"}  # normalizers that leave such text as it is
# GPT-2's words, as `ByteLevel` cuts them; the alternatives exclude one another but for the apostrophe's.
_LETTERS, _SIGNS = " ?[A-Za-z]+", r" ?[^\sA-Za-z0-9]+"
_KINDS = "a0#\t"  # a letter, a number, a sign, white space that is no space: how a character is cut
_AROUND = [
    f"{before}{{0}}{after}" for before in ["", *"az0'#. \t\n", "  ", "{0}"] for after in ["", *"as0'#. \t\n", "  "]
]
_ENDINGS = "'(?:[sdmt]|ll|ve|re)"
_GPT2 = rf"{_LETTERS}| ?[0-9]+|{_ENDINGS}|{_SIGNS}|\s+(?!\S)|\s+"


class _Head(NamedTuple):
    """What texts begin with: up to ``begins`` its words are the same however it goes on, and these are their ids."""

    text: str
    begins: int
    ids: list[int]


NO_HEAD = _Head("", 0, [])


class WordIds:
    """The ids of words, each found once.

    Args:
        words: cuts a plain text into words, from one place on up to another.
        ids_of: the ids of one word, or None if it cannot stand by itself.
        alike: the plain character that a text is cut at as at this one, or None if there is none.
        as_it_is: whether a text that is not plain stays as it is before it is cut.
        ordinary: added tokens that stand for their own text, wherever it occurs.
        local: whether words before a letter or number are the same, whatever follows that.
    """

    def __init__(
        self,
        words: Callable[[str, int, int], list[str]],
        ids_of: Callable[[str], tuple[int, ...] | None],
        alike: Callable[[str], str | None],
        as_it_is: Callable[[str], bool],
        ordinary: Iterable[str] = (),
        *,
        local: bool = False,
    ) -> None:
        self._find, self._ids_of, self._alike, self._as_it_is = words, ids_of, alike, as_it_is
        self._local = local
        self._known: dict[str, tuple[int, ...]] = {}
        self._plain: dict[int, str | None] = {}  # plain characters to be cut at, by others' code points
        texts = [re.escape(text) for text in ordinary if text]
        self._ordinary = re.compile("|".join(texts)) if texts else None
        self._head = NO_HEAD
        self._other, self._others = "", 0  # the last text that did not begin with it, and how many there were

    def cut(self, texts: Sequence[str], alone: Container[int] = ()) -> tuple[list[int], list[int]] | None:
        """Ids of texts as one text, and how many come before each of them; None where the pipeline has to cut.

        That is so where a text begins inside a word, where what comes before one that ``alone`` names by its number
        has other words if nothing follows it, and where a tokenizer's own expression takes too long.
        """
        try:
            return self._cut(texts, alone)
        except (TimeoutError, ModelError):
            return None

    def _cut(self, texts: Sequence[str], alone: Container[int]) -> tuple[list[int], list[int]] | None:
        whole = "".join(texts) if len(texts) > 1 else texts[0]
        if self._ordinary and self._ordinary.search(whole):
            return None
        cut_at = whole if _is_plain(whole) else self._as_plain(whole)
        if cut_at is None:
            return None
        head = self._head_of(texts[0])
        words, end, border = list[str](), head.begins, 0
        before = {0: 0}  # words after the head that come before a text, where that is known
        for number, text in enumerate(texts):
            if number and number in alone:
                longer = self._longer(words, cut_at, end, border)
                if longer is None:
                    return None
                words, end, before[number] = longer, border, len(longer)
            border += len(text)
        longer = self._longer(words, cut_at, end, border)
        if longer is None:
            return None
        words = longer if cut_at is whole else _spelt(longer, whole, head.begins)
        found = self._ids(words)
        if found is None or (len(before) < len(texts) and not _placed(texts, words, head.begins, before)):
            return None
        begins = [0, *(len(head.ids) + sum(map(len, found[: before[at]])) for at in range(1, len(texts)))]
        return [*head.ids, *itertools.chain.from_iterable(found)], begins

    def _longer(self, words: list[str], text: str, end: int, further: int) -> list[str] | None:
        """The words of a text up to a place, given those up to another; None if these are not the same then."""
        keep = _sure(words) if self._local else 0
        last = words[keep:]
        more = self._find(text, end - sum(map(len, last)) if self._local else 0, further)
        if more[: len(last)] != last:
            return None
        return [*words[:keep], *more] if keep else more

    def _head_of(self, text: str) -> _Head:
        """What is known of the beginning of a text, such as a form's first sentence, from others that begin so."""
        if not self._local:
            return NO_HEAD
        if self._head.begins and text.startswith(self._head.text):
            return self._head
        other, self._other = self._other, text
        self._others += 1
        if self._others % EVERY or len(other) < HEAD or not text.startswith(other[:HEAD]):
            return NO_HEAD
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False))
        head = text[: sum(1 for _ in alike)]
        words = self._find(head, 0, len(head)) if _is_plain(head) else []
        words = words[: _sure(words)]
        found = self._ids(words)
        if found is None:
            return NO_HEAD
        self._head = _Head(head, sum(map(len, words)), list(itertools.chain.from_iterable(found)))
        return self._head

    def _as_plain(self, text: str) -> str | None:
        """The plain text that is cut at the same places as one that is not; None if there is none."""
        others = set(_NOT_PLAIN.findall(text))
        with panics_as_errors():
            for other in others:
                if ord(other) not in self._plain:
                    self._plain[ord(other)] = self._alike(other)
            if None in map(self._plain.get, map(ord, others)) or not self._as_it_is(text):
                return None
        return text.translate(self._plain)

    def _ids(self, words: Sequence[str]) -> list[tuple[int, ...]] | None:
        """The ids of words, which are looked up once; None if one of them has none by itself."""
        try:
            return list(map(self._known.__getitem__, words))
        except KeyError:
            if len(self._known) > MOST_WORDS:
                self._known.clear()
        with panics_as_errors():
            for word in words:
                if word not in self._known:
                    ids = self._ids_of(word)
                    if ids is None:
                        return None
                    self._known[word] = ids
        return list(map(self._known.__getitem__, words))


def _is_plain(text: str) -> bool:
    return text.isascii() and not text.encode("ascii").translate(None, _PLAIN)


def _sure(words: Sequence[str]) -> int:
    """How many words of a text stay the same if it goes on.

    A word may become another only with what follows the letters and numbers that come after it.
    """
    keep = max(len(words) - 1, 0)
    while keep:
        keep -= 1
        if words[keep][-1].isalnum():
            break
    return keep


def _spelt(words: Sequence[str], text: str, at: int) -> list[str]:
    """The parts of a text from a place on that are as long as these words."""
    ends = itertools.accumulate(map(len, words), initial=at)
    return [text[first:end] for first, end in itertools.pairwise(ends)]


def _placed(texts: Sequence[str], words: Sequence[str], at: int, before: dict[int, int]) -> bool:
    """Find out how many words come before each text, where that is not known; whether no text begins inside a word."""
    border = number = 0
    for place, text in enumerate(texts):
        if place in before:
            number, at = before[place], border if place else at
        while at < border:
            at += len(words[number])
            number += 1
        if place and at > border:
            return False
        before[place] = number
        border += len(text)
    return True


def word_ids(state: Mapping[str, Any], fast: Any, reserved: Set[Any]) -> WordIds | None:
    """The same ids as a pipeline's, word by word; None for a pipeline that does not work so.

    That the words are the same is tried on texts of all kinds of ASCII characters.

    Args:
        state: of the tokenizer, as ``tokenizer.json`` has it, its added tokens flagged as special or not.
        fast: the tokenizer itself.
        reserved: ids that no text may have.
    """
    pattern = _pattern(state)
    if pattern is None or state["model"].get("type") != "BPE":
        return None
    ours = pattern.flags & re.ASCII > 0  # one of the two written here
    words = pattern.findall if ours or _is_known(pattern.pattern) else _with_patience(pattern)
    pre, model = fast.pre_tokenizer, fast.model

    def ids_of(word: str) -> tuple[int, ...] | None:
        (text, _), *more = pre.pre_tokenize_str(word)
        ids = tuple(int(token.id) for token in model.tokenize(text))
        return None if more or not ids or not reserved.isdisjoint(ids) else ids

    def cut_around(char: str) -> list[list[tuple[int, int]]]:
        """Where texts are cut at a character, whatever stands around."""
        return [[ends for _, ends in pre.pre_tokenize_str(text.format(char))] for text in _AROUND]

    @functools.cache
    def kinds() -> dict[str, list[list[tuple[int, int]]]]:
        return {plain: cut_around(plain) for plain in _KINDS}

    def alike(other: str) -> str | None:
        found = cut_around(other)
        return next((plain for plain, cuts in kinds().items() if cuts == found), None)

    def as_it_is(text: str) -> bool:
        return fast.normalizer is None or bool(fast.normalizer.normalize_str(text) == text)

    try:
        with panics_as_errors():
            if not all(_agrees(words, pre, text) for text in _probes()):
                return None
    except (TimeoutError, ModelError):
        return None
    ordinary = [token["content"] for token in state["added_tokens"] if not token["special"]]
    return WordIds(words, ids_of, alike, as_it_is, ordinary, local=ours)


def _pattern(state: Mapping[str, Any]) -> Any:
    """What finds the words of plain text, where normalizer and pre-tokenizer are of a known kind."""
    normalizer = state["normalizer"]
    if normalizer is not None and normalizer.get("type") not in _SAME_IN_ASCII:
        return None
    pre = state["pre_tokenizer"] or {}
    steps = pre.get("pretokenizers", [pre])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    by_regex = last.get("use_regex", True)
    if len(steps) == 1 and by_regex:
        return re.compile(_GPT2, re.ASCII)
    if len(steps) != 2:
        return None
    first = steps[0]
    if first.get("type") == "Digits" and by_regex:  # what stands between numbers is cut by itself
        digits = "[0-9]" if first.get("individual_digits") else "[0-9]+"
        rest = rf"{_ENDINGS}|{_SIGNS}|\s+(?![^\s0-9])|\s+"
        return re.compile(f"{_LETTERS}|{digits}|{rest}", re.ASCII)
    isolated = first.get("behavior") == "Isolated" and not first.get("invert")
    if first.get("type") == "Split" and isolated and not by_regex and "Regex" in first.get("pattern", {}):
        return _compiled(first["pattern"]["Regex"])
    return None


def _compiled(pattern: str) -> Any:
    import regex

    try:
        found = regex.compile(pattern)
    except regex.error:
        return None
    return None if found.groups else found


def _is_known(pattern: str) -> bool:
    """Whether an expression is one of those of llama.cpp's table, none of which takes long over any text."""
    plain = plain_pattern(pattern)
    return WRITTEN_ELSEWHERE.get(plain, plain) in {each for kind in PRE_TOKENIZERS.values() for each in kind.patterns}


def _with_patience(pattern: Any) -> Callable[[str, int, int], list[str]]:
    """What finds words by a file's own expression, which may be such that it would take years; TimeoutError then."""

    def find(text: str, begin: int, end: int) -> list[str]:
        found: list[str] = pattern.findall(text, begin, end, timeout=PATIENCE)
        return found

    return find


def _agrees(words: Callable[[str, int, int], list[str]], pre: Any, text: str) -> bool:
    """Whether the words of a text end where the pipeline's do."""
    ends = list(itertools.accumulate(map(len, words(text, 0, len(text)))))
    return ends == [end for _, (_, end) in pre.pre_tokenize_str(text)]


def _probes() -> list[str]:
    """Texts in which all kinds of ASCII characters follow one another."""
    draw = random.Random(0)
    parts = [
        *"aZs09'.,-_#(\t\n\r  ",
        "'s",
        "'ll",
        "'RE",
        "\r\n",
        "  ",
        "\n\n",
        " 12",
        "1234567",
        "word",
        " Word",
        "\n ",
    ]
    parts += [chr(code) for code in range(0x20, 0x7F)]
    return ["".join(draw.choices(parts, k=draw.randint(1, 24))) for _ in range(PROBES)]
