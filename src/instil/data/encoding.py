"""An example as ids with its mask.

The mask is set by position, while the prompt and the response are still apart; no later step looks
for ids or markers. Prompt and response are encoded apart, as they are when the model answers.
"""

from __future__ import annotations

from collections.abc import Iterable

from instil.data.templates import Piece, Template, merged
from instil.data.tokenizers import Tokenizer
from instil.errors import DataError
from instil.records import Encoded, Example
from instil.settings.options import TrainOn


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
    *asked, answer, end = template.pieces(example, train_on)
    prompt_ids, prompt_trained = _encoded(merged(asked), tokenizer)
    answer_ids, answer_trained = _encoded([answer, end], tokenizer)
    return Encoded(
        (*prompt_ids, *answer_ids), (*prompt_trained, *answer_trained), prompt_length=len(prompt_ids), row=example.row
    )


def _encoded(pieces: Iterable[Piece], tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Ids of pieces, and which of them are targets."""
    ids: list[int] = []
    trained: list[bool] = []
    text, first = "", 0  # the last text, and where its ids begin
    for piece in pieces:
        if piece.control:
            new = [tokenizer.control_id(piece.text) if piece.text else tokenizer.eos_id]
            text, first = "", len(ids)
        elif piece.joined and text:
            # The ids of both texts in one; what the first text alone has as many ids for stays as it was marked.
            text += piece.text
            whole = tokenizer.encode(text)
            kept = min(len(whole), len(ids) - first)
            del ids[first:], trained[first + kept :]
            ids += whole
            trained += [piece.trained] * (len(whole) - kept)
            continue
        else:
            new = tokenizer.encode(piece.text)
            text, first = piece.text, len(ids)
        ids += new
        trained += [piece.trained] * len(new)
    return tuple(ids), tuple(trained)


def is_spellable(example: Example, tokenizer: Tokenizer) -> bool:
    """Whether the vocabulary can spell all of a row; some lack the bytes of rare characters.

    What cannot be spelt is dropped by the tokenizer without a word, so pre-flight asks here.
    """
    texts = (example.instruction, example.input, example.output)
    rare = [text for text in texts if not (text.isascii() and text.replace("\n", "").isprintable())]
    return all(tokenizer.decode(tokenizer.encode(text)) == text for text in rare)


def encode_prompt(example: Example, template: Template, tokenizer: Tokenizer, *, header: bool = True) -> list[int]:
    """The ids the model sees before it answers; the same in training and generation.

    Without the ``header`` the model is left to write "### Response:" itself, which is the chapter's way.
    """
    return list(_encoded(merged(template.prompt_pieces(example, header=header)), tokenizer)[0])


def stop_id(template: Template, tokenizer: Tokenizer) -> int:
    """The id that ends a response under this template."""
    if not template.stop:
        return tokenizer.eos_id
    return tokenizer.control_id(template.stop)


def check_vocabulary(template: Template, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a template or tokenizer that the model's embedding cannot hold.

    Raises:
        DataError: the tokenizer has ids the model lacks.
        ModelError: the vocabulary lacks a control token of the template.
    """
    encode_prompt(Example("x", "y", "z"), template, tokenizer)
    if max(stop_id(template, tokenizer), tokenizer.vocab_size - 1) >= vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids but the model embeds {vocab_size:,}; "
            "they do not belong together"
        )
