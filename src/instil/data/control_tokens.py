"""Text cut around control tokens that stand by position, so that no text becomes one.

`transformers` looks for control tokens in the text. Here what stands for one while the text is cut is a token of
its own with the same flags, made of characters that Unicode keeps out of text; the text around it is cut as it would
be around the control token itself.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from instil.errors import DataError

PLACE = "\ufdd0{}\ufdd1"
FLAGS = ("lstrip", "rstrip", "normalized")
NOWHERE = -1


class Span(NamedTuple):
    """An id, and the parts of a row that its first and its last character lie in."""

    id: int
    first: int
    last: int


class _Piece(NamedTuple):
    """A text, or what stands for a control token, and the part of the row that it is of."""

    text: str
    control: bool
    part: int


class _Cut(NamedTuple):
    """An id (None: what stands for a control token), its first and last piece, and where and how long it is there."""

    id: int | None
    first: int
    at: int
    last: int
    length: int


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
        self.fast = Fast.from_str(json.dumps({**state, "added_tokens": added, "post_processor": None}))
        self.fast.encode_special_tokens = True  # a user's "<|im_end|>" is text
        self._flags = {str(token["content"]): tuple(bool(token[flag]) for flag in FLAGS) for token in added}
        self._reserved = frozenset(self.fast.token_to_id(name) for name in control) - {_unknown(state, self.fast)}
        self._places: dict[tuple[bool, ...], tuple[str, int]] = {}

    def spans(self, parts: Sequence[tuple[str, bool]], ids: Sequence[int]) -> list[Span]:
        """Ids of parts of text and of control tokens (True), as one text.

        Some vocabularies spell a control token out of its letters. There the text is cut in two.

        Args:
            parts: texts, and the names of control tokens.
            ids: those of the control tokens, in their order.
        """
        text = "".join(text for text, control in parts if not control)
        if PLACE[0] in text and self._salt != (salt := _salt(text)):
            return Pipeline(*self._made_of, salt).spans(parts, ids)
        pieces = [_Piece(text, control, number) for number, (text, control) in enumerate(parts)]
        while True:
            cut = self._cut(pieces, exact=True) or self._cut(pieces, exact=False)
            wrong = [one for one in cut if one.id in self._reserved and one.length > 1]
            if not wrong:
                break
            number, at = wrong[-1].first, wrong[-1].at + 1
            text, part = pieces[number].text, pieces[number].part
            apart = [_Piece(text[:at], False, part), _Piece("", True, NOWHERE), _Piece(text[at:], False, part)]
            pieces[number : number + 1] = apart
        control = iter(ids)
        return [
            Span(next(control) if one.id is None else one.id, pieces[one.first].part, pieces[one.last].part)
            for one in cut
            if pieces[one.first].part != NOWHERE
        ]

    def _cut(self, pieces: Sequence[_Piece], *, exact: bool) -> list[_Cut]:
        """All ids of the pieces as one text; with ``exact`` none, if not all control tokens are found again.

        ``exact`` gives what stands for a control token the flags of that token.
        """
        plain = (False,) * len(FLAGS)
        standing, texts, at_control = set(), [], []
        for number, piece in enumerate(pieces):
            text = piece.text
            if piece.control:
                text, index = self._place(self._flags.get(text, plain) if exact else plain)
                standing.add(index)
                at_control.append(number)
            texts.append(text)
        starts = [0, *itertools.accumulate(map(len, texts))]
        found = self._encoded("".join(texts))
        if exact and sum(index in standing for index in found.ids) != len(at_control):
            return []
        control = iter(at_control)
        cut = []
        for index, (start, end) in zip(found.ids, found.offsets, strict=True):
            if index in standing:  # its offsets take in white space that it swallows, of its neighbours
                number = next(control)
                cut.append(_Cut(None, number, 0, number, 0))
            else:
                first = _piece_at(starts, start)
                last = _piece_at(starts, max(start, end - 1))
                cut.append(_Cut(index, first, start - starts[first], last, end - start))
        return cut

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
            return self.fast.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"the tokenizer cannot spell {text[:40]!r}: {error}") from error


def _unknown(state: Mapping[str, Any], fast: Any) -> int | None:
    """The id of what the vocabulary cannot spell, which is no mark, though it is called special."""
    model = state["model"]
    name = model.get("unk_token")
    found: int | None = fast.token_to_id(name) if name else model.get("unk_id")
    return found


def _salt(text: str) -> str:
    """What tells our marks from a text that looks like one."""
    return next(salt for n in range(len(text) + 1) if (salt := f"{n} ") not in text)


def _piece_at(starts: Sequence[int], at: int) -> int:
    """The number of the piece in which a character lies."""
    return max(0, min(bisect.bisect_right(starts, at), len(starts) - 1) - 1)
