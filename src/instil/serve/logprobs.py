"""What is told of the tokens of an answer: their text, their very bytes, and what the model thought of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instil.data.tokenizers import Tokenizer
from instil.generate.request import TokenLogprobs

LEAST = -9999.0  # JSON has no infinity


def token_told(tokenizer: Tokenizer, index: int, logprob: float) -> dict[str, Any]:
    """One token. Bytes that are no whole characters are written ``\\xf0``; a control token goes by its name.

    A character may be cut over several tokens; their bytes joined are those of the text.
    """
    found = tokenizer.bytes_of(index)
    return {
        "token": _text(tokenizer, index),
        "logprob": max(logprob, LEAST),
        "bytes": None if found is None else list(found),
    }


def tokens_told(tokenizer: Tokenizer, told: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    """The tokens of an answer, each with the likeliest at its place, as chats have them."""
    return [
        {
            **token_told(tokenizer, one.token, one.logprob),
            "top_logprobs": [token_told(tokenizer, index, value) for index, value in one.top],
        }
        for one in told
    ]


def lists_told(
    tokenizer: Tokenizer, told: Sequence[TokenLogprobs], offset: int, *, first: int | None = None
) -> dict[str, Any]:
    """The same as completions have them, with where each token begins.

    Args:
        tokenizer: of the model.
        told: tokens.
        offset: characters of the tokens before them.
        first: a token before them of which nothing can be said, since nothing stands before it.
    """
    unsaid = [] if first is None else [None]
    tokens = [_text(tokenizer, index) for index in [*([] if first is None else [first]), *(one.token for one in told)]]
    return {
        "tokens": tokens,
        "token_logprobs": unsaid + [max(one.logprob, LEAST) for one in told],
        "top_logprobs": unsaid
        + [{_text(tokenizer, index): max(value, LEAST) for index, value in one.top} for one in told],
        "text_offset": [offset + sum(map(len, tokens[:at])) for at in range(len(tokens))],
    }


def _text(tokenizer: Tokenizer, index: int) -> str:
    found = tokenizer.bytes_of(index)
    return tokenizer.shown(index) if found is None else found.decode("utf-8", "backslashreplace")
