"""Answers: supervised fine-tuning on rows with an answer each (chapter 7)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instil.data.collate import RowCollator
from instil.data.encoding import encode_many
from instil.data.lengths import lengths_of
from instil.data.preflight import has_target
from instil.data.sources import Source, examples_from, read_source
from instil.data.store.build import stored_tokens
from instil.data.store.examples import ExampleStore
from instil.data.store.sources import Held, stored
from instil.data.subset import Lazy, Subset
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.records import Encoded, Example
from instil.tasks.task import Data, Task
from instil.train.objective import Likelihood, Objective

AT_ONCE = 1024  # rows encoded together


class Answers(Task[Encoded]):
    """Make the wanted answers likely."""

    collator = RowCollator

    def read(self, data: Data) -> Source:
        options = self.settings.data

        def read() -> Held:
            if isinstance(data, str | Path):
                source = read_source(data, skip_bad=options.skip_bad)
            else:
                source = examples_from(list(data), skip_bad=options.skip_bad)
            return Held(source.normalised(options.normalise))

        files = [Path(data)] if isinstance(data, str | Path) and Path(data).is_file() else []
        return stored(read, self.screen, files=files, skip_bad=options.skip_bad, normalise=options.normalise)

    def encode(
        self, source: Source, examples: Sequence[Example], template: Template, tokenizer: Tokenizer
    ) -> Sequence[Encoded]:
        train_on = self.settings.data.train_on
        if isinstance(examples, Subset) and isinstance(examples.rows, ExampleStore):
            tokens = stored_tokens(examples.rows, template, tokenizer, train_on, self.screen)
            return tokens.subset(examples.numbers)
        found: list[Encoded] = []
        for first in range(0, len(examples), AT_ONCE):
            found += encode_many(examples[first : first + AT_ONCE], template, tokenizer, train_on)
        return found

    def usable(self, rows: Sequence[Encoded], max_length: int) -> Sequence[Encoded]:
        if isinstance(rows, Lazy):
            usable_R = lengths_of(rows).has_target_R(max_length)
            return rows if usable_R.all() else rows.subset(np.flatnonzero(usable_R))
        return [row for row in rows if has_target(row, max_length)]

    def answer(self, row: Encoded) -> Encoded:
        return row

    def answered(self, rows: Sequence[Encoded]) -> Sequence[Encoded]:
        return rows

    def measured(self, rows: Sequence[Encoded]) -> Sequence[Encoded]:
        return rows

    def objective(self) -> Objective:
        return Likelihood()
