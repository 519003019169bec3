"""An example as ids with its mask.

The mask is set by position, while the pieces of a row are still apart; no later step looks for ids or markers.
A row is cut into ids as one text, as `transformers` cuts it, and the pieces' borders are found by offsets. Only where
the last answer begins inside an id, or where the prompt alone, which is all there is when the model answers, has other
ids, is it cut apart from its prompt. Earlier answers are a part of the prompt, which is cut as any program cuts it; an
id that lies across the border of one is not trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from instil.data.control_tokens import Cut
from instil.data.templates import Piece, Template
from instil.data.templates.template import Rendered
from instil.data.tokenizers import Tokenizer
from instil.errors import DataError, counted, listed
from instil.records import Encoded, Example

if TYPE_CHECKING:
    from instil.settings.options import TrainOn, Turns

Row = TypeVar("Row")
MANY_NEW = 512  # more new tokens than that are another vocabulary
BEFORE_ANSWERS = ("\n", ":", "a")  # texts that an answer can be cut after, so that it begins as if in a text


def encode(
    example: Example,
    template: Template,
    tokenizer: Tokenizer,
    train_on: TrainOn = "response",
    turns: Turns = "all",
) -> Encoded:
    """Ids of prompt, response and end token, and which of them are targets.

    In a conversation these are those of every answer (``turns``: of all, or of the last), each as often as its message
    counts (`instil.records.Turn.weight`). An id that lies across the border of what is trained on is no target, and
    counted (`instil.records.Encoded.straddling`).

    ==========================  ==========================================================
    ``train_on``                targets
    ==========================  ==========================================================
    ``"response"``              the response and the end token
    ``"response_with_header"``  those and the header that announces the response, because the
                                masked ids are counted without it (the book's exercise 7.2)
    ``"all"``                   every id (chapter 7.3)
    ==========================  ==========================================================

    Raises:
        DataError: the template has no form for something in the row, or lacks the header that is to be trained.
        ModelError: the vocabulary lacks a control token of the template.
    """
    rendered = _rendered(example, template, train_on, turns)
    pieces = _marked(rendered.pieces, tokenizer.marks_in)
    return _encoded(example, rendered, pieces, _cut(pieces, tokenizer), template, tokenizer, train_on)


def encode_many(
    examples: Sequence[Example],
    template: Template,
    tokenizer: Tokenizer,
    train_on: TrainOn = "response",
    turns: Turns = "all",
) -> list[Encoded]:
    """`encode` of many rows at once: the same ids and targets, several times as fast.

    Raises:
        DataError: as `encode_all`.
        ModelError: as `encode`.
    """
    rendered = encode_all(examples, lambda example: _rendered(example, template, train_on, turns))
    outlines: dict[Hashable, list[_Part]] = {}
    rows = [_filled(one.pieces, outlines, tokenizer.marks_in) for one in rendered]
    cuts = [tokenizer.by_words(_parts(pieces), _answers(pieces)) for pieces in rows]
    rest = [number for number, cut in enumerate(cuts) if cut is None]
    prefixes = [_prefixes(rows[number]) for number in rest]
    others = iter(tokenizer.cut_many([_parts(pieces) for some in prefixes for pieces in some]))
    for number, some in zip(rest, prefixes, strict=True):
        cuts[number] = _as_asked(rows[number], list(itertools.islice(others, len(some))), tokenizer)
    return [
        _encoded(example, one, pieces, cut, template, tokenizer, train_on)
        for example, one, pieces, cut in zip(examples, rendered, rows, cuts, strict=True)
        if cut is not None
    ]


def _rendered(example: Example, template: Template, train_on: TrainOn, turns: Turns) -> Rendered:
    if example.text_only:
        return Rendered(template.text_pieces(example))
    return template.rendered(example, train_on, turns)


def _encoded(
    example: Example,
    rendered: Rendered,
    pieces: Sequence[Piece],
    cut: Cut,
    template: Template,
    tokenizer: Tokenizer,
    train_on: TrainOn,
) -> Encoded:
    """A row out of its pieces and their ids."""
    begin = _begin(pieces, template, tokenizer)
    trained, straddling = _trained(pieces, cut)
    trained = [train_on == "all"] * len(begin) + trained
    answer = next(number for number, piece in enumerate(pieces) if piece.answer)
    return Encoded(
        (*begin, *cut.ids),
        tuple(trained),
        prompt_length=len(begin) + cut.begins[answer],
        row=example.row,
        weights=_weights(pieces, cut, trained, len(begin)),
        straddling=straddling,
        left_out=rendered.left_out,
    )


def encode_all(examples: Sequence[Example], encode_one: Callable[[Example], Row]) -> list[Row]:
    """Rows as ids, in their order.

    Raises:
        DataError: the template has no form for some of them, all of which are named.
    """
    found, complaints = [], []
    for example in examples:
        try:
            found.append(encode_one(example))
        except DataError as error:
            complaints.append(f"row {example.row}: {error}")
    if complaints:
        raise DataError(f"{counted(len(complaints), 'row')} cannot be put into this form:\n{listed(complaints)}")
    return found


def mask_notes(rows: Sequence[Encoded]) -> list[str]:
    """What is to be said of rows of which not all is trained on that was to be."""
    straddling = {row.row: row.straddling for row in rows if row.straddling}
    left_out = {row.row: row.left_out for row in rows if row.left_out}
    return mask_lines(list(straddling), sum(straddling.values()), list(left_out), sum(left_out.values()))


def mask_lines(straddling: Sequence[int], ids: int, left_out: Sequence[int], answers: int) -> list[str]:
    """The same by the numbers of the rows, and how many ids and answers it is of."""
    notes = []
    if straddling:
        across = counted(ids, "id")
        notes.append(
            f"{across} across the border of what is trained on {'is' if ids == 1 else 'are'} not trained on: "
            f"rows {_shown(straddling)}"
        )
    if left_out:
        notes.append(
            f"{counted(answers, 'earlier answer')} only read, not trained on, since the template writes them otherwise "
            f"once a message follows: rows {_shown(left_out)}"
        )
    return notes


def _shown(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:20])) + (", ..." if len(rows) > 20 else "")


def _trained(pieces: Sequence[Piece], cut: Cut) -> tuple[list[bool], int]:
    """Which ids are targets, and how many are not because a part of them is not."""
    trained: list[bool] = []
    for piece, (first, end) in zip(pieces, itertools.pairwise(cut.begins), strict=True):
        trained += [piece.trained] * (end - first)
    straddling = set()
    for number in cut.joined:
        at = cut.begins[number] - 1  # the id that this piece begins inside of, which is of an earlier one
        if any(one.trained != pieces[number].trained and one.text for one in _parts_of(at, number, pieces, cut)):
            trained[at] = False
            straddling.add(at)
    return trained, len(straddling)


def _parts_of(at: int, number: int, pieces: Sequence[Piece], cut: Cut) -> Iterator[Piece]:
    """The pieces before one that have a share in an id."""
    for earlier in range(number - 1, -1, -1):
        yield pieces[earlier]
        if cut.begins[earlier] <= at:
            return


def _weights(pieces: Sequence[Piece], cut: Cut, trained: Sequence[bool], begin: int) -> tuple[float, ...]:
    """How often each id counts, unless every target counts once."""
    if not any(piece.trained and piece.weight != 1 for piece in pieces):
        return ()
    weights = [1.0] * begin
    for piece, (first, end) in zip(pieces, itertools.pairwise(cut.begins), strict=True):
        weights += [piece.weight] * (end - first)
    return tuple(weight if counts else 0.0 for weight, counts in zip(weights, trained, strict=True))


class _Part(NamedTuple):
    """Neighbouring pieces as one: their texts, or their numbers where texts are rows' own, and what it is without."""

    texts: list[str | int]
    piece: Piece


def _filled(
    pieces: Sequence[Piece],
    outlines: dict[Hashable, list[_Part]],
    marks_in: Callable[[str], list[tuple[str, bool]]],
) -> list[Piece]:
    """The same as `_marked`, with neighbours in one that are alike: borders that nobody asks for.

    Rows whose pieces differ in nothing but their own texts have the same outline.
    """
    key = tuple([piece if piece.form or piece.control else piece[1:] for piece in pieces])
    outline = outlines.get(key)
    if outline is None:
        outline = outlines[key] = _outline(pieces, marks_in)
    return [
        Piece("".join([pieces[text].text if isinstance(text, int) else text for text in texts]), *piece[1:])
        for texts, piece in outline
    ]


def _outline(pieces: Sequence[Piece], marks_in: Callable[[str], list[tuple[str, bool]]]) -> list[_Part]:
    """Pieces with neighbours in one that are text, trained on alike, and no answers."""
    found: list[_Part] = []
    for number, piece in enumerate(pieces):
        of_form = marks_in(piece.text) if piece.form else ()
        of_row = () if piece.form else ((number, piece.control),)
        for place, (text, control) in enumerate((*of_form, *of_row)):
            kind = Piece("", control, piece.trained, piece.answer and place == 0, weight=piece.weight)
            last = found[-1].piece if found else kind
            alone = not found or last.control or control or last.answer or kind.answer
            if alone or (last.trained, last.weight) != (kind.trained, kind.weight):
                found.append(_Part([text], kind))
            else:
                found[-1].texts.append(text)
    return found


def _marked(pieces: Sequence[Piece], marks_in: Callable[[str], list[tuple[str, bool]]]) -> list[Piece]:
    """The same, with the model's control tokens that the template's own text names as such."""
    found: list[Piece] = []
    for piece in pieces:
        if piece.form:
            parts = marks_in(piece.text)
            for number, (text, control) in enumerate(parts):
                begins = piece.answer and number == 0
                found.append(Piece(text, control, piece.trained, begins, weight=piece.weight))
        else:
            found.append(piece)
    return found


def begin_text(template: Template, tokenizer: Tokenizer) -> str:
    """What a chat template has to write before this template's prompt, so that it has the ids of training.

    Some vocabularies begin a text with a space, but not where a token stands before it.
    """
    pieces = _marked(template.prompt_pieces(Example("x")), tokenizer.marks_in)
    if not _begin(pieces, template, tokenizer):
        return ""
    wanted = encode_prompt(Example("x"), template, tokenizer)
    begin = [(name, True) for name in tokenizer.begin]
    for space in ("", " "):
        if tokenizer.cut([*begin, (space, False), *_parts(pieces)]).ids == wanted:
            return "".join(tokenizer.begin) + space
    return "".join(tokenizer.begin)


def _cut(pieces: Sequence[Piece], tokenizer: Tokenizer) -> Cut:
    """Ids of pieces as one text, with where the pieces lie; those before the answer are as without it."""
    return _as_asked(pieces, [tokenizer.cut(_parts(some)) for some in _prefixes(pieces)], tokenizer)


def _prefixes(pieces: Sequence[Piece]) -> list[Sequence[Piece]]:
    """What comes before each answer, and the whole."""
    return [*(pieces[:border] for border in _answers(pieces)), pieces]


def _as_asked(pieces: Sequence[Piece], cuts: Sequence[Cut], tokenizer: Tokenizer) -> Cut:
    """Out of the ids of each of `_prefixes`, those of the whole in which what comes before an answer has its own."""
    asked, *longer = cuts
    for whole, end in zip(longer, [*_answers(pieces), len(pieces)][1:], strict=True):
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


def _answers(pieces: Sequence[Piece]) -> list[int]:
    """Where answers begin, before which the text has the ids that it has without them."""
    return [number for number, piece in enumerate(pieces) if piece.answer]


def _parts(pieces: Sequence[Piece]) -> list[tuple[str, bool]]:
    return [(piece.text, piece.control) for piece in pieces]


def _begin(pieces: Sequence[Piece], template: Template, tokenizer: Tokenizer) -> tuple[int, ...]:
    """What every text begins with, unless the template writes it by itself."""
    if template.writes_begin or not tokenizer.begin_ids:
        return ()
    first = [piece for piece in pieces[: len(tokenizer.begin_ids)] if piece.control]
    ids = tuple(tokenizer.control_id(piece.text) if piece.text else tokenizer.eos_id for piece in first)
    return () if ids == tokenizer.begin_ids else tokenizer.begin_ids


def encode_prompt(
    example: Example, template: Template, tokenizer: Tokenizer, *, header: bool = True, begun: str = ""
) -> list[int]:
    """The ids the model sees before it answers; the same in training and generation.

    Without the ``header`` the model is left to write "### Response:" itself, which is the chapter's way. An answer that
    is ``begun`` is cut as a trained one is.
    """
    pieces = _marked(template.prompt_pieces(example, header=header), tokenizer.marks_in)
    if begun:
        pieces.append(Piece(begun, answer=True))
    return [*_begin(pieces, template, tokenizer), *_cut(pieces, tokenizer).ids]


def header_begins(example: Example, template: Template, tokenizer: Tokenizer) -> int:
    """Which of a prompt's ids is the first of the header's words; how many ids it has where it has no header."""
    prompt = encode_prompt(example, template, tokenizer)
    if not template.header:
        return len(prompt)
    first = len(encode_prompt(example, template, tokenizer, header=False))
    while first < len(prompt) and not tokenizer.decode(prompt[first : first + 1]).strip():
        first += 1  # the empty line before the header's words
    return first


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
