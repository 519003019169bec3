"""Answers: supervised fine-tuning on rows with an answer each (chapter 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from instil.data.collate import RowCollator
from instil.data.encoding import encode_many
from instil.data.files.rows import open_rows
from instil.data.lengths import lengths_of
from instil.data.sources import Source, SourceRows, open_source
from instil.data.store.build import stored_tokens, tokens_ahead
from instil.data.store.examples import ExampleStore
from instil.data.store.sources import stored
from instil.data.subset import Subset, chosen
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.model.decoder import Decoder
from instil.records import Encoded, Example
from instil.screen import Screen
from instil.tasks.rehearsal import rehearsed
from instil.tasks.task import Data, Keeps, Prepared, Task
from instil.train.objective import Likelihood, Objective
from instil.train.ranks import ALONE, Ranks


class Answers(Task[Encoded]):
    """Make the wanted answers likely."""

    collator = RowCollator

    def read(self, data: Data) -> Source:
        options = self.settings.data

        def read() -> SourceRows:
            rows = data if isinstance(data, str | Path) else list(data)
            return open_source(rows, skip_bad=options.skip_bad, mapping=options.map, form=options.normalise)

        files = open_rows(data, skip_bad=options.skip_bad).files if isinstance(data, str | Path) else ()
        how = {"skip_bad": options.skip_bad, "normalise": options.normalise, "map": list(options.map)}
        return stored(read, self.screen, files=files, **how)

    def encode(
        self, source: Source, examples: Sequence[Example], template: Template, tokenizer: Tokenizer
    ) -> Sequence[Encoded]:
        train_on, turns = self.settings.data.train_on, self.settings.data.turns
        if isinstance(examples, Subset) and isinstance(examples.rows, ExampleStore):
            tokens = stored_tokens(examples.rows, template, tokenizer, train_on, self.screen, turns)
            return tokens.subset(examples.numbers)
        return encode_many(examples, template, tokenizer, train_on, turns)

    @contextmanager
    def encoding(
        self, source: Source, template: Template, tokenizer: Tokenizer
    ) -> Iterator[Callable[[Sequence[Example]], Sequence[Encoded]]]:
        """Of rows in a store other processes begin with all at once."""
        rows, options = source.examples, self.settings.data
        if not isinstance(rows, ExampleStore):
            yield lambda examples: self.encode(source, examples, template, tokenizer)
            return
        with tokens_ahead(rows, template, tokenizer, options.train_on, self.screen, options.turns) as tokens:

            def encoded(examples: Sequence[Example]) -> Sequence[Encoded]:
                assert isinstance(examples, Subset) and examples.rows is rows, "the parts are of this store"
                return tokens().subset(examples.numbers)

            yield encoded

    def usable(self, rows: Sequence[Encoded], max_length: int) -> Sequence[Encoded]:
        usable_R = lengths_of(rows).has_target_R(max_length)
        return rows if usable_R.all() else chosen(rows, np.flatnonzero(usable_R))

    def doubtful(self, rows: Sequence[Encoded], max_length: int) -> Sequence[Encoded]:
        lengths = lengths_of(rows)
        return chosen(rows, np.flatnonzero(lengths.cut_R(max_length) | ~lengths.has_target_R(max_length)))

    def answer(self, row: Encoded) -> Encoded:
        return row

    def answered(self, rows: Sequence[Encoded]) -> Sequence[Encoded]:
        return rows

    def measured(self, rows: Sequence[Encoded]) -> Sequence[Encoded]:
        return rows

    def objective(self) -> Objective:
        return Likelihood()

    @property
    def looks_before(self) -> bool:
        return self.settings.train.rehearse > 0

    def ready(
        self,
        prepared: Prepared,
        decoder: Decoder,
        screen: Screen,
        *,
        all_rows: bool = False,
        journal: Keeps | None = None,
        ranks: Ranks = ALONE,
    ) -> Prepared:
        """With the texts that are mixed in, which the model writes now."""
        del all_rows
        if not self.looks_before:
            return prepared
        return rehearsed(prepared, decoder, screen, journal=journal, ranks=ranks)
