"""Models that are asked the same rows, each in its way; what was answered before is not answered again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from re import sub
from statistics import mean

from instil.ask.journal import key_of
from instil.assistant.assistant import Assistant
from instil.data.encoding import encode_prompt
from instil.data.templates import OWN
from instil.files import json_object_or_empty, write_json
from instil.generate.answer import answer
from instil.model.cache import position_bytes
from instil.model.load import file_hash
from instil.records import Completion, Example
from instil.runs.answers import find_answers
from instil.runs.folder import RunFolder, response_rows
from instil.screen import Screen
from instil.settings.options import GenerateOptions
from instil.version import __version__

FOLDER = "rivals"


@dataclass(frozen=True, slots=True)
class Asked:
    """Answers of one model, asked in one way, and what they cost.

    Attributes:
        name: what it is called.
        how: what is done, in a clause.
        answers: texts, in the order of the rows.
        no_room: numbers of rows whose prompt left no room for an answer.
        seconds: for one answer, many being made side by side.
        prompt_tokens: of one question, in the mean.
        memory: bytes of weights, and of keys and values of the longest prompt with its longest answer.
        file: where its answers lie, in the book's form.
    """

    name: str
    how: str
    answers: tuple[str, ...]
    no_room: frozenset[int]
    seconds: float
    prompt_tokens: float
    memory: int
    file: Path


class Candidate:
    """A model to be asked, which is loaded when that is needed; ``path`` is where its weights are."""

    def __init__(self, name: str, path: str | Path, make: Callable[[], Assistant]) -> None:
        self.name, self._path, self._make = name, path, make

    @cached_property
    def assistant(self) -> Assistant:
        """The model, with its tokenizer and the form in which it is asked."""
        return self._make()

    @cached_property
    def weights(self) -> str:
        """A hash of its weights."""
        return file_hash(self._path)

    @property
    def own(self) -> bool:
        """Whether it is asked in its own chat form."""
        return self.assistant.template.name == OWN

    def tokens(self, row: Example) -> int:
        """How long a row's prompt is."""
        one = self.assistant
        return len(encode_prompt(row, one.template, one.tokenizer, header=one.options.header))

    def memory(self, positions: int) -> int:
        """Bytes of its weights, and of keys and values of so many tokens."""
        decoder = self.assistant.decoder
        weights = {one.data_ptr(): one.numel() * one.element_size() for one in decoder.parameters()}
        return sum(weights.values()) + positions * position_bytes(decoder.spec, decoder.embed.weight.dtype)


class Asking:
    """Rows of a run, put to one model after another.

    Args:
        folder: the run; answers are kept below it.
        rows: as they are in the run: what answers belong to.
        options: how answers are made, for all alike.
        screen: where progress is shown.
    """

    def __init__(self, folder: RunFolder, rows: Sequence[Example], options: GenerateOptions, screen: Screen) -> None:
        self.rows, self.options, self.screen = rows, options, screen
        self._folder = folder.path / FOLDER

    def ask(self, candidate: Candidate, name: str, how: str, rows: Sequence[Example] | None = None) -> Asked:
        """Answers to the rows, put as ``rows`` has them, or as they are."""
        put = self.rows if rows is None else rows
        file = self._folder / f"{file_name(name)}.json"
        about = file.with_suffix(".about")
        template, options = candidate.assistant.template, self.options
        asked = [row.as_json() for row in put]
        key = key_of(__version__, candidate.weights, template.hash, options.model_dump(mode="json"), asked)
        known = json_object_or_empty(about)
        if known.get("key") == key and file.is_file():
            seconds, found = float(known["seconds"]), find_answers(file)[0]
            texts, no_room = found.answers, frozenset(self.rows[at].row for at in sorted(found.no_room))
        else:
            said, seconds = self.timed(candidate, put, name)
            write_json(file, response_rows(self.rows, said))
            write_json(about, {"key": key, "seconds": seconds})
            texts = tuple(one.text for one in said)
            no_room = frozenset(one.row for one in said if one.finish == "no_room")
        lengths = [candidate.tokens(row) for row in put]
        memory = candidate.memory(max(lengths) + options.max_new_tokens)
        return Asked(name, how, texts, no_room, seconds / len(put), mean(lengths), memory, file)

    def timed(self, candidate: Candidate, rows: Sequence[Example], name: str) -> tuple[list[Completion], float]:
        """Answers, and the seconds that all of them took."""
        one = candidate.assistant
        with self.screen.bar(f"{name} answers", len(rows)) as advance:
            started = time.perf_counter()
            said = answer(one.decoder, one.tokenizer, one.template, rows, self.options, advance)
            return said, time.perf_counter() - started


def file_name(name: str) -> str:
    """What the answers of a model are called.

    >>> file_name("base, with examples"), file_name("../models/Qwen3-0.6B")
    ('base-with-examples', 'models-Qwen3-0.6B')
    """
    return sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[-80:] or "model"
