r"""Ids of plain text word by word.

A byte-level vocabulary cuts a text into words by a regular expression, and each word into ids by itself. Words come
again and again, so it is enough to find them and look their ids up: several times as fast as the whole pipeline, which
keeps offsets and alignments on its way. Plain text is printable ASCII, with tabs and new lines; another character
is cut at as at the plain one of its kind, which the pipeline is asked about once. What is cut otherwise (other
vocabularies, texts that a normalizer changes or that hold an added token) goes through the pipeline.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from instil.data.byte_level import PRE_TOKENIZERS, WRITTEN_ELSEWHERE, plain_pattern
from instil.data.panics import panics_as_errors
from instil.errors import ModelError

PATIENCE = 1.0  # seconds for the words of one text
MOST_WORDS = 400_000  # kept with their ids, some 100 MB; then they are looked for anew
PROBES = 300
HEAD, EVERY = 32, 8  # characters that a common beginning has at least; it is looked for after so many texts without one
_NOT_PLAIN = re.compile(r"[^\t\n\r\x20-\x7e]")
_SAME_IN_ASCII = {"NFC", "NFD", "NFKC", "NFKD"}  # normalizers that leave such text as it is
# GPT-2's words, as `ByteLevel` cuts them; the alternatives exclude one another but for the apostrophe's.
_LETTERS, _SIGNS = " ?[A-Za-z]+", r" ?[^\sA-Za-z0-9]+"
_KINDS = "a0#\t"  # a letter, a number, a sign, white space that is no space: how a character is cut
_AROUND = [
    f"{before}{{0}}{after}" for before in ["", *"az0'#. \t\n", "  ", "{0}"] for after in ["", *"as0'#. \t\n", "  "]
]
_ENDINGS = "'(?:[sdmt]|ll|ve|re)"
_GPT2 = rf"{_LETTERS}| ?[0-9]+|{_ENDINGS}|{_SIGNS}|\s+(?!\S)|\s+"


class _Last(NamedTuple):
    """The text that was cut last, such as a prompt before its row: its words, their ids, and how many ids there are.

    The first ``sure`` words, up to where ``begins`` points, stay the same if the text goes on.
    """

    text: str
    words: list[str]
    ids: list[tuple[int, ...]]
    total: int
    sure: int
    begins: int


class WordIds:
    """The ids of words, each found once.

    Args:
        words: cuts a plain text into words, from a position on.
        ids_of: the ids of one word, or None if it cannot stand by itself.
        alike: the plain character that a text is cut at as at this one, or None if there is none.
        as_it_is: whether a text that is not plain stays as it is before it is cut.
        ordinary: added tokens that stand for their own text, wherever it occurs.
        local: whether words before a letter or number are the same, whatever follows that.
    """

    def __init__(
        self,
        words: Callable[..., list[str]],
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
        self._last = self._head = _Last("", [], [], 0, 0, 0)
        self._without_head = 0

    def cut(self, texts: Sequence[str]) -> tuple[list[int], list[int]] | None:
        """Ids of texts as one text, and how many come before each of them; None where the pipeline has to cut.

        That is so where a text begins inside a word, and where a tokenizer's own expression takes too long.
        """
        try:
            with panics_as_errors():
                return self._cut(texts)
        except (TimeoutError, ModelError):
            return None

    def _cut(self, texts: Sequence[str]) -> tuple[list[int], list[int]] | None:
        whole = "".join(texts) if len(texts) > 1 else texts[0]
        if self._ordinary and self._ordinary.search(whole):
            return None
        last = self._last
        again = len(texts) > 1 and texts[0] == last.text
        known = last if again else self._head
        begins_so = known.sure and (again or whole.startswith(known.text)) and not _NOT_PLAIN.search(whole)
        head = known.words[: known.sure] if begins_so else []
        rest = self._find(whole, known.begins) if head else self._words(whole)
        if rest is None:
            return None
        try:
            new = list(map(self._known.__getitem__, rest))
        except KeyError:
            if not self._learn(rest):
                return None
            new = list(map(self._known.__getitem__, rest))
        words, found = ([*head, *rest], [*known.ids[: known.sure], *new]) if head else (rest, new)
        begins, number, count, at = [0], 0, 0, 0
        for text in texts[:-1]:
            border = at + len(text)
            if not at and again and words[: len(last.words)] == last.words:
                at, number, count = border, len(last.words), last.total
            while at < border:
                at += len(words[number])
                count += len(found[number])
                number += 1
            if at > border:
                return None
            begins.append(count)
        ids = list(itertools.chain.from_iterable(found))
        if len(texts) == 1:
            if not head:
                self._find_head(whole, last.text)
            self._last = self._as_last(whole, words, found, len(ids))
        return ids, begins

    def _find_head(self, text: str, other: str) -> None:
        """What two texts begin with, such as a form's first sentence, as what others may begin with."""
        self._without_head += 1
        if not self._local or self._without_head % EVERY or len(other) < HEAD or not text.startswith(other[:HEAD]):
            return
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False))
        head = text[: sum(1 for _ in alike)]
        words = self._words(head)
        if words and self._learn(words):
            ids = [self._known[word] for word in words]
            self._head = self._as_last(head, words, ids, sum(map(len, ids)))

    def _as_last(self, text: str, words: list[str], ids: list[tuple[int, ...]], total: int) -> _Last:
        """What can be used again where this text goes on.

        A word may become another only with what follows the letters and numbers that come after it.
        """
        sure, begins = len(words) - 1, len(text) - len(words[-1]) if words else 0
        while sure > 0:
            sure -= 1
            begins -= len(words[sure])
            if words[sure][-1].isalnum():
                break
        return _Last(text, words, ids, total, sure if self._local else 0, begins)

    def _words(self, text: str) -> list[str] | None:
        others = set(_NOT_PLAIN.findall(text))
        if not others:
            return self._find(text)
        for other in others:
            if ord(other) not in self._plain:
                self._plain[ord(other)] = self._alike(other)
        if None in map(self._plain.get, map(ord, others)) or not self._as_it_is(text):
            return None
        ends = [0, *itertools.accumulate(map(len, self._find(text.translate(self._plain))))]
        return [text[first:end] for first, end in itertools.pairwise(ends)]

    def _learn(self, words: Sequence[str]) -> bool:
        """Look up the ids of new words; whether all of them have some."""
        if len(self._known) > MOST_WORDS:
            self._known.clear()
        for word in words:
            if word not in self._known:
                ids = self._ids_of(word)
                if ids is None:
                    return False
                self._known[word] = ids
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

    def alike(other: str) -> str | None:
        return next((plain for plain in _KINDS if _cut_alike(pre, other, plain)), None)

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


def _with_patience(pattern: Any) -> Callable[..., list[str]]:
    """What finds words by a file's own expression, which may be such that it would take years; TimeoutError then."""

    def find(text: str, begin: int = 0) -> list[str]:
        found: list[str] = pattern.findall(text, begin, timeout=PATIENCE)
        return found

    return find


def _agrees(words: Callable[[str], list[str]], pre: Any, text: str) -> bool:
    """Whether the words of a text end where the pipeline's do."""
    ends = list(itertools.accumulate(map(len, words(text))))
    return ends == [end for _, (_, end) in pre.pre_tokenize_str(text)]


def _cut_alike(pre: Any, other: str, plain: str) -> bool:
    """Whether texts are cut at one character as at another, whatever stands around."""
    return all(
        [ends for _, ends in pre.pre_tokenize_str(text.format(other))]
        == [ends for _, ends in pre.pre_tokenize_str(text.format(plain))]
        for text in _AROUND
    )


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
