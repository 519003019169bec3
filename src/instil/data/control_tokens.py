"""Text cut around control tokens that stand by position, so that no text becomes one.

`transformers` looks for control tokens in the text. Here what stands for one while the text is cut is a token of
its own with the same flags, made of characters that Unicode keeps out of text; the text around it is cut as it would
be around the control token itself.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from instil.data.panics import panics_as_errors
from instil.data.word_ids import WordIds, word_ids
from instil.errors import DataError, ModelError

PLACE = "\ufdd0{}\ufdd1"
FLAGS = ("lstrip", "rstrip", "normalized")
FEW = 10_000  # ids that may be left out of the smallest vocabulary
BETWEEN = -1  # stands between the halves of a text that was cut in two


class Cut(NamedTuple):
    """The ids of a row, and where its parts lie among them.

    Attributes:
        ids: of all parts, in their order.
        begins: for each part how many ids come before it, and at last how many there are. An id that lies in two
            parts is of the first.
        joined: the parts that begin inside an id of another.
    """

    ids: list[int]
    begins: list[int]
    joined: frozenset[int]


class _Piece(NamedTuple):
    """A text, or a control token by its name and id, and the number of the part that it is of."""

    text: str
    control: int | None
    part: int


class Pipeline:
    """A tokenizer for which some tokens are never made from text.

    Args:
        state: of the tokenizer, as ``tokenizer.json`` has it.
        control: the texts of these tokens.
        salt: what tells our marks from a text that looks like one.
    """

    def __init__(self, state: Mapping[str, Any], control: frozenset[str], salt: str = "") -> None:
        from tokenizers import Tokenizer as Fast

        self._made_of, self._salt = (state, control), salt
        added = [
            {**token, "special": token["special"] or token["content"] in control} for token in state["added_tokens"]
        ]
        self._state = _without_holes({**state, "added_tokens": added, "post_processor": None})
        try:
            self.fast = Fast.from_str(json.dumps(self._state))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(
                f"this tokenizer contradicts itself, so that it does not come back as it is written ({error}); "
                "fetch its files again"
            ) from error
        self.fast.encode_special_tokens = True  # a user's "<|im_end|>" is text
        self._flags = {str(token["content"]): tuple(bool(token[flag]) for flag in FLAGS) for token in added}
        self._reserved = frozenset(self.fast.token_to_id(name) for name in control) - {_unknown(state, self.fast)}
        self._places: dict[tuple[bool, ...], tuple[str, int]] = {}

    def cut(self, parts: Sequence[tuple[str, bool]], control_ids: Sequence[int]) -> Cut:
        """Ids of parts of text and of control tokens (True), as one text.

        Some vocabularies spell a control token out of its letters. There a text is cut in two, with nothing between.

        Args:
            parts: texts, and the names of control tokens.
            control_ids: those of the control tokens, in their order.
        """
        text = "".join(text for text, control in parts if not control)
        if PLACE[0] in text and self._salt != (salt := _salt(text)):
            return Pipeline(*self._made_of, salt).cut(parts, control_ids)
        pieces = _pieces(parts, control_ids)
        while True:
            cut, wrong = self._cut(pieces, exact=True) or self._cut(pieces, exact=False) or (None, ())
            assert cut is not None, "what stands for a control token by itself is always found again"
            if not wrong:
                break
            for number, at in reversed(wrong):
                text, _, part = pieces[number]
                between = _Piece("", BETWEEN, part)
                pieces[number : number + 1] = [_Piece(text[:at], None, part), between, _Piece(text[at:], None, part)]
        return cut if len(pieces) == len(parts) else _joined(cut, pieces, len(parts))

    def cut_many(self, rows: Sequence[tuple[Sequence[tuple[str, bool]], Sequence[int]]]) -> list[Cut]:
        """`cut` of many rows at once: word by word where that is the same, else side by side in several threads."""
        cuts = [self.by_words(parts, control_ids) for parts, control_ids in rows]
        rest = [
            number
            for number, cut in enumerate(cuts)
            if cut is None and not any(PLACE[0] in text for text, control in rows[number][0] if not control)
        ]
        pieces = {number: _pieces(*rows[number]) for number in rest}
        texts = {number: self._texts(pieces[number], exact=True) for number in rest}
        if rest:
            try:
                with panics_as_errors():
                    whole = ["".join(texts[number][0]) for number in rest]
                    found = self.fast.encode_batch(whole, add_special_tokens=False)
            except Exception:  # the library raises bare Exception; the row will be named when it is cut by itself
                found = []
            for number, one in zip(rest, found, strict=False):
                cut, wrong = self._read(one, pieces[number], *texts[number]) or (None, ())
                cuts[number] = None if wrong else cut
        return [self.cut(*rows[number]) if cut is None else cut for number, cut in enumerate(cuts)]

    @cached_property
    def _words(self) -> WordIds | None:
        return word_ids(self._state, self.fast, self._reserved)

    def by_words(
        self, parts: Sequence[tuple[str, bool]], control_ids: Iterable[int], alone: Sequence[int] = ()
    ) -> Cut | None:
        """The same as `cut`, word by word; None where that cannot be done.

        Nor is it where what comes before one of the parts that ``alone`` names by number has other ids by itself.
        """
        if self._words is None or not parts:
            return None
        ids, begins, left, at = list[int](), list[int](), iter(control_ids), 0
        while at < len(parts):
            text, control = parts[at]
            if control:
                if any(self._flags.get(text, ())):
                    return None
                begins.append(len(ids))
                ids.append(next(left))
                at += 1
                continue
            first = at
            while at < len(parts) and not parts[at][1]:
                at += 1
            found = self._words.cut(
                [text for text, _ in parts[first:at]], [number - first for number in alone if first < number < at]
            )
            if found is None:
                return None
            more, inside = found
            begins += [len(ids) + begin for begin in inside] if ids else inside
            ids = ids + more if ids else more
        return Cut(ids, [*begins, len(ids)], frozenset())

    def _cut(self, pieces: Sequence[_Piece], *, exact: bool) -> tuple[Cut, list[tuple[int, int]]] | None:
        """All ids, and the pieces and places in them where text became a control token.

        ``exact`` gives what stands for a control token the flags of that token. There is nothing to return if not all
        of them are found again then.
        """
        texts, standing = self._texts(pieces, exact=exact)
        return self._read(self._encoded("".join(texts)), pieces, texts, standing)

    def _texts(self, pieces: Sequence[_Piece], *, exact: bool) -> tuple[list[str], set[int]]:
        """The text of each piece, and the ids of those that stand for control tokens."""
        plain = (False,) * len(FLAGS)
        standing, texts = set(), []
        for text, control, _ in pieces:
            if control is None:
                texts.append(text)
                continue
            place, index = self._place(self._flags.get(text, plain) if exact else plain)
            standing.add(index)
            texts.append(place)
        return texts, standing

    def _read(
        self, found: Any, pieces: Sequence[_Piece], texts: Sequence[str], standing: set[int]
    ) -> tuple[Cut, list[tuple[int, int]]] | None:
        """What `_cut` returns, of the encoding that was found for these texts."""
        ids = found.ids
        misspelt = not self._reserved.isdisjoint(ids)
        control_ids = [piece.control for piece in pieces if piece.control is not None]
        at = [number for number, index in enumerate(ids) if index in standing] if control_ids else []
        if len(at) != len(control_ids):
            return None
        if len(pieces) == 1 and not misspelt:
            return Cut(ids, [0, len(ids)], frozenset()), []
        offsets = found.offsets
        borders = [0, *itertools.accumulate(map(len, texts))]
        wrong = []
        if misspelt:
            by_position = set(at)
            for number, (index, (start, end)) in enumerate(zip(ids, offsets, strict=True)):
                if index in self._reserved and number not in by_position and end - start > 1:
                    piece = bisect.bisect_right(borders, start) - 1
                    wrong.append((piece, start - borders[piece] + 1))
        for number, index in zip(at, control_ids, strict=True):
            ids[number] = index
        starts = [start for start, _ in offsets]
        begins = [*(bisect.bisect_left(starts, border) for border in borders[:-1]), len(ids)]
        joined = {
            piece
            for piece, begin in enumerate(begins[:-1])
            if piece and begin and offsets[begin - 1][1] > borders[piece]
        }
        return Cut(ids, begins, frozenset(joined)), wrong

    def _place(self, flags: tuple[bool, ...]) -> tuple[str, int]:
        """The text and the id of what stands for a control token with such flags."""
        from tokenizers import AddedToken

        if flags not in self._places:
            text = PLACE.format(self._salt + "".join("ny"[flag] for flag in flags))
            self.fast.add_tokens([AddedToken(text, special=False, **dict(zip(FLAGS, flags, strict=True)))])
            index: Any = self.fast.token_to_id(text)
            self._places[flags] = (text, int(index))
        return self._places[flags]

    def _encoded(self, text: str) -> Any:
        try:
            with panics_as_errors():
                return self.fast.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"the tokenizer cannot spell {text[:40]!r}: {error}") from error


def _pieces(parts: Sequence[tuple[str, bool]], control_ids: Sequence[int]) -> list[_Piece]:
    ids = iter(control_ids)
    return [_Piece(text, next(ids) if control else None, number) for number, (text, control) in enumerate(parts)]


def _joined(cut: Cut, pieces: Sequence[_Piece], parts: int) -> Cut:
    """The same of whole parts, without what stands between their halves."""
    first = {piece.part: number for number, piece in reversed(list(enumerate(pieces)))}
    begins = [cut.begins[first[part]] for part in range(parts)]
    taken = [number for number, index in enumerate(cut.ids) if index == BETWEEN]
    begins = [begin - bisect.bisect_left(taken, begin) for begin in begins]
    ids = [index for index in cut.ids if index != BETWEEN]
    return Cut(ids, [*begins, len(ids)], frozenset(part for part in range(parts) if first[part] in cut.joined))


def _unknown(state: Mapping[str, Any], fast: Any) -> int | None:
    """The id of what the vocabulary cannot spell, which is no mark, though it is called special."""
    model = state["model"]
    name = model.get("unk_token")
    found: int | None = fast.token_to_id(name) if name else model.get("unk_id")
    return found


def check_ids(ids: Mapping[str, int]) -> None:
    """Refuse ids that leave out far more than there are; `tokenizers` would count through all of them.

    Raises:
        ModelError: they do, or two tokens have one id.
    """
    seen: dict[int, str] = {}
    for token, index in ids.items():
        if seen.setdefault(index, token) != token:
            raise ModelError(
                f"this tokenizer gives two tokens one id: {seen[index]!r} and {token!r} have {index:,}; fetch its "
                "files again"
            )
    if seen and max(seen) >= 2 * len(seen) + FEW:
        raise ModelError(f"this tokenizer has {len(seen):,} tokens, and ids up to {max(seen):,}; fetch its files again")


def _without_holes(state: dict[str, Any]) -> dict[str, Any]:
    """The same with a token for every id, where the library would give a new one the id of a token that is there.

    It takes as many as there are for the next id. What fills a hole is flagged special, and so never shown.

    """
    vocabulary = state["model"]["vocab"]
    tokens: list[dict[str, Any]] = state["added_tokens"]
    if not isinstance(vocabulary, dict) or not vocabulary:
        return state
    largest, following = max(vocabulary.values()), max((token["id"] for token in tokens), default=-1) + 1
    if largest < max(following if following > len(vocabulary) else 0, len(vocabulary)):
        return state
    whole = {**vocabulary, **{str(token["content"]): int(token["id"]) for token in tokens}}
    missing = set(range(largest + 1)).difference(whole.values())
    flags = {"special": True, "single_word": False, **dict.fromkeys(FLAGS, False)}
    holes = {PLACE.format(f"{index} is no token "): index for index in sorted(missing)}
    more = [{"id": index, "content": text, **flags} for text, index in holes.items()]
    model = {**state["model"], "vocab": {**whole, **holes}}
    return {**state, "model": model, "added_tokens": sorted([*tokens, *more], key=lambda token: int(token["id"]))}


def _salt(text: str) -> str:
    """What tells our marks from a text that looks like one."""
    return next(salt for n in range(len(text) + 1) if (salt := f"{n} ") not in text)
