"""Answers: supervised fine-tuning on rows with an answer each (chapter 7)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instil.data.collate import RowCollator
from instil.data.encoding import encode, encode_all
from instil.data.sources import Source, examples_from, read_source
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.records import Encoded, Example
from instil.tasks.task import Data, Task
from instil.train.objective import Likelihood, Objective


class Answers(Task[Encoded]):
    """Make the wanted answers likely."""

    collator = RowCollator

    def read(self, data: Data) -> Source:
        options = self.settings.data
        if isinstance(data, str | Path):
            source = read_source(data, skip_bad=options.skip_bad, mapping=options.map)
        else:
            source = examples_from(list(data), skip_bad=options.skip_bad, mapping=options.map)
        return source.normalised(self.settings.data.normalise)

    def encode(
        self, source: Source, examples: Sequence[Example], template: Template, tokenizer: Tokenizer
    ) -> list[Encoded]:
        options = self.settings.data
        return encode_all(examples, lambda row: encode(row, template, tokenizer, options.train_on, options.turns))

    def answer(self, row: Encoded) -> Encoded:
        return row

    def objective(self) -> Objective:
        return Likelihood()
