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

    def cut(self, parts: Sequence[tuple[str, bool]], control_ids: Sequence[int]) -> Cut:
        """Ids of parts of text and of control tokens (True), as one text.

        Args:
            parts: texts, and the names of control tokens.
            control_ids: those of the control tokens, in their order.
        """
        text = "".join(text for text, control in parts if not control)
        if PLACE[0] in text and self._salt != (salt := _salt(text)):
            return Pipeline(*self._made_of, salt).cut(parts, control_ids)
        found = self._cut(parts, control_ids, exact=True) or self._cut(parts, control_ids, exact=False)
        assert found is not None, "what stands for a control token by itself is always found again"
        cut, wrong = found
        return cut if wrong is None else self._cut_apart(parts, control_ids, wrong)

    def _cut_apart(self, parts: Sequence[tuple[str, bool]], control_ids: Sequence[int], wrong: tuple[int, int]) -> Cut:
        """The same, where a text spells a control token: cut in two there, with nothing between the halves."""
        number, at = wrong
        text = parts[number][0]
        halves = [(text[:at], False), ("", True), (text[at:], False)]
        before = sum(control for _, control in parts[:number])
        between = min([0, *control_ids]) - 1  # no id of any other
        ids = [*control_ids[:before], between, *control_ids[before:]]
        cut = self.cut([*parts[:number], *halves, *parts[number + 1 :]], ids)
        taken = cut.ids.index(between)
        begins = [begin - (begin > taken) for begin in cut.begins]
        joined = {part if part <= number else part - 2 for part in cut.joined if part not in (number + 1, number + 2)}
        return Cut(
            [*cut.ids[:taken], *cut.ids[taken + 1 :]], begins[: number + 1] + begins[number + 3 :], frozenset(joined)
        )

    def _cut(
        self, parts: Sequence[tuple[str, bool]], control_ids: Sequence[int], *, exact: bool
    ) -> tuple[Cut, tuple[int, int] | None] | None:
        """All ids, and the part and the place in it where text became a control token, if it did.

        Args:
            parts: see `cut`.
            control_ids: see `cut`.
            exact: give what stands for a control token the flags of that token. There is nothing to return if not all
                of them are found again then.
        """
        plain = (False,) * len(FLAGS)
        standing, texts = set(), []
        for text, control in parts:
            if control:
                place, index = self._place(self._flags.get(text, plain) if exact else plain)
                standing.add(index)
                texts.append(place)
            else:
                texts.append(text)
        found = self._encoded("".join(texts))
        ids = found.ids
        wrong = not self._reserved.isdisjoint(ids)
        if control_ids:
            at = [number for number, index in enumerate(ids) if index in standing]
            if len(at) != len(control_ids):
                return None
            for number, index in zip(at, control_ids, strict=True):
                ids[number] = index
        else:
            at = []
        if len(parts) == 1 and not wrong:
            return Cut(ids, [0, len(ids)], frozenset()), None
        offsets = found.offsets
        starts = [start for start, _ in offsets]
        borders = [0, *itertools.accumulate(map(len, texts))]
        begins = [bisect.bisect_left(starts, border) for border in borders[:-1]]
        begins = [0, *begins[1:], len(ids)]
        joined = {
            part for part, begin in enumerate(begins[:-1]) if part and begin and offsets[begin - 1][1] > borders[part]
        }
        return Cut(ids, begins, frozenset(joined)), self._spelt(found, at, borders) if wrong else None

    def _spelt(self, found: Any, at: Sequence[int], borders: Sequence[int]) -> tuple[int, int] | None:
        """The part, and the place behind its first letter, of the first control token that is made from text."""
        by_position = set(at)
        for number, (index, (start, end)) in enumerate(zip(found.ids, found.offsets, strict=True)):
            if index in self._reserved and number not in by_position and end - start > 1:
                part = bisect.bisect_right(borders, start) - 1
                return part, start - borders[part] + 1
        return None

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
