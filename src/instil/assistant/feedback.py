"""What people make of answers, as rows for training: kept conversations, preference pairs, and answers with a label.

Three files of JSON Lines, each of a form that the project reads again: ``kept.jsonl`` (``messages``), ``pairs.jsonl``
(``prompt``, ``chosen``, ``rejected``) and ``labelled.jsonl`` (``messages`` and ``label``, KTO's form, of which pairs
are made where a prompt has a good answer and a bad one).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instil.errors import UserError

ROWS, PAIRS, LABELLED = "kept.jsonl", "pairs.jsonl", "labelled.jsonl"
_WRITING = threading.Lock()

Messages = Sequence[Mapping[str, str]]


def kept_row(messages: Messages) -> dict[str, Any]:
    """A conversation that ends with an answer, as a row to be trained on.

    >>> kept_row([{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}])["messages"][-1]
    {'role': 'assistant', 'content': 'Hi.'}

    Raises:
        UserError: there is no answer at its end.
    """
    if not messages or messages[-1]["role"] != "assistant" or not messages[-1]["content"]:
        raise UserError("there is no answer to keep")
    return {"messages": [dict(message) for message in messages]}


def labelled_row(messages: Messages, *, wanted: bool) -> dict[str, Any]:
    """The same with a label: whether such an answer is wanted.

    Raises:
        UserError: there is no answer at its end.
    """
    return {**kept_row(messages), "label": wanted}


def pair_row(prompt: Messages, chosen: str, rejected: str) -> dict[str, Any]:
    """Two answers to what was said so far, of which the first is better, as a preference pair.

    Raises:
        UserError: the answers are the same.
    """
    if chosen == rejected:
        raise UserError("both answers are the same, so neither is better")
    return {
        "prompt": [dict(message) for message in prompt],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def add_row(file: Path, row: Mapping[str, Any]) -> Path:
    """Append a row to a file of JSON Lines, as one whole line whoever else appends to it; the file.

    A line that somebody left unfinished is ended first, so that it spoils no other.

    Raises:
        UserError: the file cannot be written; then it is as it was.
    """
    try:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
        with _WRITING, file.open("a+b", buffering=0) as rows:
            size = rows.seek(0, os.SEEK_END)
            rows.seek(max(0, size - 1))
            if size and rows.read(1) != b"\n":
                line = b"\n" + line
            try:
                if rows.write(line) != len(line):  # the disk is full
                    raise OSError("there was room for a part of the row only")
            except OSError:
                rows.truncate(size)
                raise
    except (OSError, UnicodeError) as error:
        raise UserError(f"{file}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    return file
