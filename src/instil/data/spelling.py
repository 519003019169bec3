"""What is left of a text once a tokenizer has put it into ids."""

from __future__ import annotations

import unicodedata
from typing import Literal

from instil.data.tokenizers import Tokenizer
from instil.records import Example


def spelling(example: Example, tokenizer: Tokenizer) -> Literal["as written", "altered", "misspelt"]:
    """What is left of a row's text once it has been put into ids.

    ``altered``: letters of another case, accents or white space are lost, as a tokenizer that normalises text does.
    ``misspelt``: some vocabularies lack the bytes of rare characters, which are dropped without a word. Another
    normal form of the same characters (Unicode's NFC) is as written.
    """
    texts = [example.instruction, example.input, example.output, example.reasoning]
    texts += [
        text for turn in (*example.history, *example.steps) for text in (turn.content, turn.input, turn.reasoning)
    ]
    if _comes_back("\n".join(texts), tokenizer):
        return "as written"
    found = {_spelling(text, tokenizer) for text in texts if text}
    return next((kind for kind in ("misspelt", "altered") if kind in found), "as written")


def _comes_back(text: str, tokenizer: Tokenizer) -> bool:
    """Whether it is known without looking that a text comes back as it was; so do all parts of it, then."""
    plain = tokenizer.exact and text.isascii() and text.replace("\n", "").isprintable()
    return plain or tokenizer.spells(text)


def _spelling(text: str, tokenizer: Tokenizer) -> Literal["as written", "altered", "misspelt"]:
    if _comes_back(text, tokenizer):
        return "as written"
    back = tokenizer.decode(tokenizer.encode(text))
    if unicodedata.normalize("NFC", back).strip() == unicodedata.normalize("NFC", text).strip():
        return "as written"  # a space at the beginning may be taken for that which texts begin with
    return "altered" if _bare(back) == _bare(text) else "misspelt"


def _bare(text: str) -> str:
    """A text without what normalisers take away: case, accents (all marks), white space, and compatible forms."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in apart if unicodedata.category(letter)[0] != "M" and not letter.isspace())
