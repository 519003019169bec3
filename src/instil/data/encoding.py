"""An example as ids with its mask.

The mask is set by position, while the pieces of a row are still apart; no later step looks for ids or markers.
A row is cut into ids as one text, as `transformers` cuts it, and the pieces' borders are found by offsets. Only where
a border lies inside an id, or where the prompt alone, which is all there is when the model answers, has other ids, is
an answer cut apart from its prompt.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

from instil.data.control_tokens import Cut
from instil.data.templates import Piece, Template
from instil.data.tokenizers import Tokenizer
from instil.errors import DataError
from instil.records import Encoded, Example
from instil.settings.options import TrainOn

MANY_NEW = 512  # more new tokens than that are another vocabulary
BEFORE_ANSWERS = ("\n", ":", "a")  # texts that an answer can be cut after, so that it begins as if in a text


def encode(
    example: Example,
    template: Template,
    tokenizer: Tokenizer,
    train_on: TrainOn = "response",
) -> Encoded:
    """Ids of prompt, response and end token, and which of them are targets.

    ==========================  ==========================================================
    ``train_on``                targets
    ==========================  ==========================================================
    ``"response"``              the response and the end token
    ``"response_with_header"``  those and the header that announces the response, because the
                                masked ids are counted without it (the book's exercise 7.2)
    ``"all"``                   every id (chapter 7.3)
    ==========================  ==========================================================

    Raises:
        DataError: the header is to be trained, but the template has none.
        ModelError: the vocabulary lacks a control token of the template.
    """
    pieces = _marked(template.pieces(example, train_on), tokenizer.marks_in)
    return _encoded(example, pieces, _cut(pieces, tokenizer), tokenizer, train_on)


def encode_many(
    examples: Sequence[Example],
    template: Template,
    tokenizer: Tokenizer,
    train_on: TrainOn = "response",
) -> list[Encoded]:
    """`encode` of many rows at once: the same ids and targets, several times as fast.

    Raises:
        DataError, ModelError: as `encode`.
    """
    form = cache(tokenizer.marks_in)
    rows = [_merged(_marked(template.pieces(example, train_on), form)) for example in examples]
    prefixes = [_prefixes(pieces) for pieces in rows]
    cuts = iter(tokenizer.cut_many([_parts(pieces) for some in prefixes for pieces in some]))
    return [
        _encoded(
            example, pieces, _as_asked(pieces, list(itertools.islice(cuts, len(some))), tokenizer), tokenizer, train_on
        )
        for example, pieces, some in zip(examples, rows, prefixes, strict=True)
    ]


def _encoded(example: Example, pieces: Sequence[Piece], cut: Cut, tokenizer: Tokenizer, train_on: TrainOn) -> Encoded:
    """A row out of its pieces and their ids."""
    begin = _begin(pieces, tokenizer)
    trained = [train_on == "all"] * len(begin)
    for piece, (first, end) in zip(pieces, itertools.pairwise(cut.begins), strict=True):
        trained += [piece.trained] * (end - first)
    last_answer = max(number for number, piece in enumerate(pieces) if piece.answer)
    prompt_length = len(begin) + cut.begins[last_answer]
    return Encoded((*begin, *cut.ids), tuple(trained), prompt_length=prompt_length, row=example.row)


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """The same with neighbours in one that are text, trained on alike, and no answers: borders that nobody asks for."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else piece
        alone = not found or last.control or piece.control or last.answer or piece.answer
        if alone or last.trained != piece.trained:
            found.append(piece)
        else:
            found[-1] = Piece(last.text + piece.text, trained=piece.trained)
    return found


def _marked(pieces: Sequence[Piece], marks_in: Callable[[str], list[tuple[str, bool]]]) -> list[Piece]:
    """The same, with the model's control tokens that the template's own text names as such."""
    found: list[Piece] = []
    for piece in pieces:
        if piece.form:
            found += [Piece(text, control, piece.trained) for text, control in marks_in(piece.text)]
        else:
            found.append(piece)
    return found


def begin_text(template: Template, tokenizer: Tokenizer) -> str:
    """What a chat template has to write before this template's prompt, so that it has the ids of training.

    Some vocabularies begin a text with a space, but not where a token stands before it.
    """
    pieces = _marked(template.prompt_pieces(Example("x")), tokenizer.marks_in)
    if not _begin(pieces, tokenizer):
        return ""
    wanted = encode_prompt(Example("x"), template, tokenizer)
    begin = [(name, True) for name in tokenizer.begin]
    for space in ("", " "):
        if tokenizer.cut([*begin, (space, False), *_parts(pieces)]).ids == wanted:
            return "".join(tokenizer.begin) + space
    return "".join(tokenizer.begin)


def _cut(pieces: Sequence[Piece], tokenizer: Tokenizer) -> Cut:
    """Ids of pieces as one text, with where the pieces lie; those before an answer are as without it."""
    return _as_asked(pieces, [tokenizer.cut(_parts(some)) for some in _prefixes(pieces)], tokenizer)


def _prefixes(pieces: Sequence[Piece]) -> list[Sequence[Piece]]:
    """What comes before each answer, and the whole."""
    answers = [number for number, piece in enumerate(pieces) if piece.answer]
    return [*(pieces[:border] for border in answers), pieces]


def _as_asked(pieces: Sequence[Piece], cuts: Sequence[Cut], tokenizer: Tokenizer) -> Cut:
    """Out of the ids of each of `_prefixes`, those of the whole in which what comes before an answer has its own."""
    asked, *longer = cuts
    answers = [number for number, piece in enumerate(pieces) if piece.answer]
    for whole, end in zip(longer, [*answers, len(pieces)][1:], strict=True):
        border = len(asked.begins) - 1
        if border not in whole.joined and whole.ids[: whole.begins[border]] == asked.ids:
            asked = whole
            continue
        rest = _continued(_parts(pieces[border:end]), tokenizer)
        count = len(asked.ids)
        begins = [*asked.begins[:-1], *(count + begin for begin in rest.begins)]
        joined = asked.joined | {part + border for part in rest.joined}
        asked = Cut([*asked.ids, *rest.ids], begins, frozenset(joined))
    return asked


def _continued(parts: Sequence[tuple[str, bool]], tokenizer: Tokenizer) -> Cut:
    """Ids of parts that go on from a text: without the space that some vocabularies put before one."""
    for text in BEFORE_ANSWERS:
        before, joined = tokenizer.encode(text), tokenizer.cut([(text, False), *parts])
        count = len(before)
        clean = 1 not in joined.joined and joined.begins[1] == count and joined.ids[:count] == before
        if clean and _adds_space(text, tokenizer):
            begins = [begin - count for begin in joined.begins[1:]]
            return Cut(joined.ids[count:], begins, frozenset(part - 1 for part in joined.joined))
    return tokenizer.cut(parts)


def _adds_space(text: str, tokenizer: Tokenizer) -> bool:
    """Whether a letter has other ids at the beginning than after this text."""
    return tokenizer.encode(f"{text}b")[len(tokenizer.encode(text)) :] != tokenizer.encode("b")


def _parts(pieces: Sequence[Piece]) -> list[tuple[str, bool]]:
    return [(piece.text, piece.control) for piece in pieces]


def _begin(pieces: Sequence[Piece], tokenizer: Tokenizer) -> tuple[int, ...]:
    """What every text begins with, unless the template writes it by itself."""
    first = [piece for piece in pieces[: len(tokenizer.begin_ids)] if piece.control]
    ids = tuple(tokenizer.control_id(piece.text) if piece.text else tokenizer.eos_id for piece in first)
    return () if ids == tokenizer.begin_ids else tokenizer.begin_ids


def spelling(example: Example, tokenizer: Tokenizer) -> Literal["as written", "altered", "misspelt"]:
    """What is left of a row's text once it has been put into ids.

    ``altered``: letters of another case, accents or white space are lost, as a tokenizer that normalises text does.
    ``misspelt``: some vocabularies lack the bytes of rare characters, which are dropped without a word. Another
    normal form of the same characters (Unicode's NFC) is as written.
    """
    found = {_spelling(text, tokenizer) for text in (example.instruction, example.input, example.output) if text}
    return next((kind for kind in ("misspelt", "altered") if kind in found), "as written")


def _spelling(text: str, tokenizer: Tokenizer) -> Literal["as written", "altered", "misspelt"]:
    if tokenizer.exact and text.isascii() and text.replace("\n", "").isprintable():
        return "as written"
    if tokenizer.spells(text):
        return "as written"
    back = tokenizer.decode(tokenizer.encode(text))
    if unicodedata.normalize("NFC", back).strip() == unicodedata.normalize("NFC", text).strip():
        return "as written"  # a space at the beginning may be taken for that which texts begin with
    return "altered" if _bare(back) == _bare(text) else "misspelt"


def _bare(text: str) -> str:
    """A text without what normalisers take away: case, accents (all marks), white space, and compatible forms."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in apart if unicodedata.category(letter)[0] != "M" and not letter.isspace())


def encode_prompt(example: Example, template: Template, tokenizer: Tokenizer, *, header: bool = True) -> list[int]:
    """The ids the model sees before it answers; the same in training and generation.

    Without the ``header`` the model is left to write "### Response:" itself, which is the chapter's way.
    """
    pieces = _marked(template.prompt_pieces(example, header=header), tokenizer.marks_in)
    return [*_begin(pieces, tokenizer), *_cut(pieces, tokenizer).ids]


def stop_id(template: Template, tokenizer: Tokenizer) -> int:
    """The id that ends a response under this template."""
    if not template.stop:
        return tokenizer.eos_id
    return tokenizer.control_id(template.stop)


def ends_line(template: Template, tokenizer: Tokenizer) -> str:
    """What answers end and prompts begin with, in one line."""
    end = stop_id(template, tokenizer)
    begins = ", ".join(f"{tokenizer.token(index)!r} ({index})" for index in tokenizer.begin_ids)
    return (
        f"answers end with {tokenizer.token(end)!r} ({end}), prompts begin with {begins or 'their text'}; "
        f"template {template.name}"
    )


def check_vocabulary(template: Template, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a template or tokenizer that the model's embedding cannot hold.

    Ids that no row can have, such as that of an image's mark, may lie beyond it.

    Raises:
        DataError: the tokenizer has ids that rows can have and the model lacks.
        ModelError: the vocabulary lacks a control token of the template.
    """
    written = encode_prompt(Example("x", "y", "z"), template, tokenizer)
    ends = {stop_id(template, tokenizer): "the token that ends an answer", tokenizer.eos_id: "the end token"}
    beyond = [f"{said} ({index})" for index, said in ends.items() if index >= vocab_size]
    beyond += [f"a token of the template ({index})" for index in written if index >= vocab_size]
    beyond += [f"{token!r}" for token in tokenizer.beyond(vocab_size)]
    if beyond:
        advice = (
            "they do not belong together; take the model's own tokenizer"
            if len(beyond) > MANY_NEW
            else "set model.resize=true to give them rows, or take the model's own tokenizer"
        )
        raise DataError(
            f"the tokenizer has {len(beyond):,} ids that the model has no rows for ({', '.join(beyond[:5])}"
            f"{', ...' if len(beyond) > 5 else ''}), since it embeds {vocab_size:,}; {advice}"
        )
