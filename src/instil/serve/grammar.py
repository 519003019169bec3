"""Answers held to JSON, or to a JSON schema, token by token (llguidance).

White space is not left to the model, which could go on with it for ever: members are set apart as Python's `json` does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from instil.data.encoding import stop_id
from instil.errors import DataError
from instil.serve.models import Served

ANY_OBJECT: dict[str, Any] = {"type": "object"}
SPACING: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Held:
    """A grammar that one answer is held to (`instil.generate.request.Constraint`).

    What may come first is found at once: that takes seconds for some schemas, and others are not to wait for it.

    Args:
        matcher: of this answer alone.

    Raises:
        DataError: nothing can be found.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._mask: bytes | None = self._next()

    def _next(self) -> bytes:
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error() or not any(mask):
            raise DataError(f"the answer cannot be held to its schema any longer: {self._problem()}")
        return mask

    def allowed(self, size: int) -> Tensor:
        """Whether each id may come next, bool [size]."""
        self._mask = self._next() if self._mask is None else self._mask
        bits = np.unpackbits(np.frombuffer(self._mask, dtype=np.uint8), bitorder="little")[:size]
        found = torch.zeros(size, dtype=torch.bool)
        found[: len(bits)] = torch.from_numpy(bits).bool()
        return found

    def take(self, token: int) -> None:
        """A token was taken."""
        self._matcher.consume_token(token)
        self._mask = None

    def _problem(self) -> str:
        return _first_line(self._matcher.get_error()) or "no token of this model goes on with it"


class Grammars:
    """Grammars for the tokens of the models that are served. For several threads."""

    def __init__(self) -> None:
        self._tokenizers: dict[str, LLTokenizer] = {}
        self._lock = threading.Lock()

    def held(self, served: Served, schema: Mapping[str, Any] | None) -> Held:
        """A constraint for one answer.

        Args:
            served: whose answer it is.
            schema: a JSON schema; None: any JSON object.

        Raises:
            DataError: the schema cannot be used, or this model's tokenizer cannot be held to one.
        """
        matcher = self._matcher(served, json.dumps(dict(ANY_OBJECT if schema is None else schema)))
        if matcher.is_error():
            raise DataError(f"the JSON schema cannot be used: {_first_line(matcher.get_error())}")
        return Held(matcher)

    def _matcher(self, served: Served, schema: str) -> LLMatcher:
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, defaults=SPACING)
        except ValueError as error:
            raise DataError(f"the JSON schema cannot be used: {_first_line(str(error))}") from error
        with self._lock:
            if served.name not in self._tokenizers:
                self._tokenizers[served.name] = _tokenizer(served)
        return LLMatcher(self._tokenizers[served.name], grammar, log_level=0)


def _tokenizer(served: Served) -> LLTokenizer:
    """The tokens of a model, as llguidance knows them."""
    tokenizer = served.assistant.tokenizer
    saved = tokenizer.saved()
    ends = sorted(tokenizer.stop_ids | {stop_id(served.assistant.template, tokenizer)})
    size = max(saved.get_vocab_size(with_added_tokens=True), served.assistant.decoder.spec.vocab_size)
    try:
        return LLTokenizer(saved.to_str(), n_vocab=size, eos_token=ends)
    except Exception as error:
        raise DataError(
            f"answers of {served.name} cannot be held to JSON: its tokenizer is of another kind: {error}"
        ) from error


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0][:300]
