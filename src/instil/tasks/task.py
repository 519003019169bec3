"""What is to be learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from instil.data.loader import BookLoader, Loader
from instil.data.preflight import Preflight, has_target
from instil.data.sources import Source
from instil.data.splits import Part, Split
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.records import Batch, Encoded, EncodedPair, Example
from instil.settings.options import Settings
from instil.tasks.pairs.batches import BookPairLoader, PairLoader
from instil.tasks.pairs.encoding import Pairs, usable
from instil.tasks.pairs.losses import Preference
from instil.train.evaluation import AsInBook, Evaluator, HeldOut
from instil.train.objective import Likelihood, Objective

Data = str | Path | Sequence[dict[str, Any]]
SAMPLE_ROWS = 2
SAMPLE_TOKENS = 48
EVALUATED_TOKENS = 1024  # in one batch of validation rows


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is known before the first weight is loaded."""

    settings: Settings
    source: Source
    split: Split
    template: Template
    tokenizer: Tokenizer
    encoded: dict[Part, list[Encoded]]
    preflight: Preflight
    model_name: str
    model_path: Path
    max_length: int
    pairs: Pairs | None = None  # with train.objective=dpo; ``encoded`` are then the chosen answers

    @property
    def held_out(self) -> tuple[str, tuple[Example, ...]]:
        """The rows that are answered before and after: test rows, or validation rows if there are none."""
        if self.split.test:
            return "test", self.split.test
        return "validation", self.split.validation

    @property
    def sampled(self) -> tuple[Example, ...]:
        """The few rows that are answered as training goes on."""
        return (self.split.validation or self.split.test)[:SAMPLE_ROWS]


def loader_for(prepared: Prepared, part: Part) -> Loader | None:
    """Batches of a part, without the rows that have nothing to train on; None if there are none."""
    rows: Sequence[Encoded] | Sequence[EncodedPair]
    if prepared.pairs is not None:
        rows = usable(prepared.pairs[part], prepared.max_length, prepared.settings)
    else:
        rows = [row for row in prepared.encoded[part] if has_target(row, prepared.max_length)]
    if not rows:
        return None
    options = prepared.settings.train
    training = part == "train"
    kinds = (Loader, BookLoader) if prepared.pairs is None else (PairLoader, BookPairLoader)
    micro_batch = options.micro_batch or options.batch_size
    whole = not training and not options.eval_batches and options.evaluation == "held_out"
    if whole:  # no gradient is held, so many rows go through at once; what is counted are tokens, not batches
        longest = min(prepared.max_length, max(len(row.ids) for row in rows))
        micro_batch = max(micro_batch, EVALUATED_TOKENS // longest // (1 if prepared.pairs is None else 2))
    return kinds[options.order == "book"](
        rows,
        len(rows) if whole else options.batch_size,
        pad_id=prepared.tokenizer.eos_id,
        max_length=prepared.max_length,
        micro_batch=micro_batch,
        shuffle=training,
        drop_last=options.drop_last and training,
        seed=options.seed,
        layout=options.layout,
    )


def objective_for(prepared: Prepared) -> Objective:
    """What training makes smaller."""
    return Likelihood() if prepared.pairs is None else Preference(prepared.settings.dpo)


def evaluator_for(prepared: Prepared, loader: Loader) -> Evaluator:
    """What evaluates during training, as the settings have it."""
    options = prepared.settings.train
    held_back = loader_for(prepared, "validation")
    if options.evaluation == "book":
        rhythm = (options.eval_every, options.eval_batches)
        return AsInBook(_opener(loader), _opener(held_back), *rhythm, objective_for(prepared))
    steps = held_back.steps() if held_back else iter(())
    batches = [batch for step in islice(steps, options.eval_batches or None) for batch in step]
    return HeldOut(batches, options.eval_every, objective=objective_for(prepared))


def _opener(loader: Loader | None) -> Callable[[], Iterator[list[Batch]]]:
    """Opens a loader for an evaluation, in the order drawn next where there is such a thing."""
    if loader is None:
        return lambda: iter(())
    return loader.draw if isinstance(loader, BookLoader) else loader.steps
