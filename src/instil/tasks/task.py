"""What is to be learnt: one shape for it, and all that is known of a run before its first weight is loaded.

Two tasks stand today: answers (`instil.tasks.answers`) and preferences (`instil.tasks.pairs.task`). Nothing outside
this room asks which of them it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from instil.batches import Batch
from instil.data.leaks import Leaks
from instil.data.lengths import lengths_of
from instil.data.loader import Collator, Layouts, Loader
from instil.data.preflight import Preflight, has_target
from instil.data.sources import Source
from instil.data.splits import Part, Split
from instil.data.subset import Joined, Lazy, spread
from instil.data.templates import Template
from instil.data.together import together
from instil.data.tokenizers import Tokenizer
from instil.model.decoder import Decoder
from instil.model.spec import DecoderSpec
from instil.records import Encoded, Example
from instil.screen import Screen
from instil.settings.options import Settings
from instil.train.evaluation import AsInBook, Evaluator, HeldOut
from instil.train.metrics import StepRecord
from instil.train.objective import Objective
from instil.train.observer import Observer
from instil.train.ranks import ALONE, Ranks

Data = str | Path | Sequence[dict[str, Any]]
Row = TypeVar("Row")
SAMPLE_ROWS = 2
SAMPLE_TOKENS = 48
KEPT_BATCHES = 5000  # of validation rows, made once


@dataclass(frozen=True, slots=True)
class View:
    """A row as people may look at it: its ids, which of them are learnt, and what it is called if a row has several.

    ``weights`` says how often each id counts in the loss, where not all count once.
    """

    row: Encoded
    learnt: Sequence[bool]
    name: str = ""
    weights: Sequence[float] = ()


class Keeps(Protocol):
    """Where something is kept that JSON can hold, by the hash of all that it depends on."""

    def keep(self, key: str, entry: Any) -> None:
        """Keep it."""

    def kept(self, key: str) -> Any:
        """What was kept, or None."""


class Task(ABC, Generic[Row]):
    """What is to be learnt of rows: how they are read, encoded, checked and batched, and what is made smaller.

    ``Row`` is an encoded row, which has a ``row`` number and ``ids``. ``screen`` is where reading and encoding show
    that they are under way.
    """

    collator: Callable[[int, int | None, Layouts], Collator]
    sequences: ClassVar[int] = 1
    """How many sequences a row is."""
    gentler: ClassVar[float] = 1.0
    """How many times lower the usual learning rates are than those of supervised fine-tuning."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.screen = Screen(quiet=True)

    @abstractmethod
    def read(self, data: Data) -> Source:
        """The rows of a file, an address or a list, as examples.

        Raises:
            DataError: they cannot be used.
        """

    @abstractmethod
    def encode(
        self, source: Source, examples: Sequence[Example], template: Template, tokenizer: Tokenizer
    ) -> Sequence[Row]:
        """Rows as ids: of these examples of the source, in their order."""

    @contextmanager
    def encoding(
        self, source: Source, template: Template, tokenizer: Tokenizer
    ) -> Iterator[Callable[[Sequence[Example]], Sequence[Row]]]:
        """What gives `encode` of examples; it may begin before it is asked, beside what is done in between."""
        yield lambda examples: self.encode(source, examples, template, tokenizer)

    def usable(self, rows: Sequence[Row], max_length: int) -> Sequence[Row]:
        """Those that have something to learn within ``max_length`` positions."""
        return [row for row in rows if not self.left_out(row, max_length)]

    def left_out(self, row: Row, max_length: int) -> str:
        """Why a row has nothing to learn within ``max_length`` positions, or nothing."""
        answer = self.answer(row)
        if has_target(answer, max_length):
            return ""
        if not any(answer.trained[1:]):
            return "nothing of it is trained on"
        return f"its prompt alone has {answer.prompt_length:,} tokens, and {max_length:,} are kept of a row"

    def doubtful(self, rows: Sequence[Row], max_length: int) -> Iterable[Row]:
        """Those that may be left out or cut, where that is known without looking at each; else all."""
        del max_length
        return rows

    @abstractmethod
    def answer(self, row: Row) -> Encoded:
        """A row's prompt with the wanted answer: what pre-flight counts."""

    def longest(self, row: Row) -> Encoded:
        """The longest of a row's sequences: what has to fit."""
        return self.answer(row)

    def answers(self, source: Source) -> Callable[[Example], Sequence[str]] | None:
        """The answers of a row of the source that are looked at, where they are not the example's own."""
        del source
        return None

    def answered(self, rows: Sequence[Row]) -> Sequence[Encoded]:
        """`answer` of each row."""
        return [self.answer(row) for row in rows]

    def measured(self, rows: Sequence[Row]) -> Sequence[Encoded]:
        """`longest` of each row."""
        return [self.longest(row) for row in rows]

    @abstractmethod
    def objective(self) -> Objective:
        """What training makes smaller."""

    def check(
        self,
        source: Source,
        rows: Mapping[Part, Sequence[Row]],
        max_length: int,
        template: Template,
        tokenizer: Tokenizer,
        model: Path,
    ) -> Sequence[str]:
        """What is to be said of the rows before training.

        Raises:
            UserError: they, or the settings, cannot be used.
        """
        del source, rows, max_length, template, tokenizer, model
        return ()

    @property
    def looks_before(self) -> bool:
        """Whether every row is looked at once before the first step (`ready`)."""
        return False

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
        """With what must be known before the first step; ``all_rows`` even of rows that training would not reach.

        ``journal`` keeps it as it is found, for this very run, model and rows. Of several processes each finds out its
        share.
        """
        del decoder, screen, all_rows, journal, ranks
        return prepared

    def observers(self, screen: Screen) -> list[Observer]:
        """Who else watches a training of this kind."""
        del screen
        return []

    def inputs(self) -> list[str]:
        """Names or paths of what is read besides rows and model."""
        return []

    def hashes(self) -> dict[str, str]:
        """Of further files that shape the run, by what they are."""
        return {}

    @staticmethod
    def loss_settings(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Those settings of a run, of its own section, that say what its loss is a loss of."""
        del stored
        return {}

    def shown(self, record: StepRecord) -> str:
        """What a progress line says beside the validation loss."""
        del record
        return ""

    def views(self, row: Row) -> list[View]:
        """A row under the microscope (``instil inspect``)."""
        answer = self.answer(row)
        return [View(answer, answer.trained, weights=answer.weights)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything that is known before the first weight is loaded.

    ``own_template`` is the model's own chat template where the held-out rows are answered in that before training, too.
    ``rows`` are the encoded rows of each part, in the order of `Split`'s examples. ``spec`` is the model's as it will
    be tuned, with rows for all tokens,
    ``new_rows`` of which are new.
    """

    settings: Settings
    task: Task[Any]
    source: Source
    split: Split
    leaks: Leaks
    template: Template
    own_template: Template | None
    tokenizer: Tokenizer
    rows: Mapping[Part, Sequence[Any]]
    model_name: str
    model_path: Path
    spec: DecoderSpec
    new_rows: int
    max_length: int
    preflight: Preflight
    rehearsal: Sequence[Encoded] = ()  # texts mixed into training (`instil.tasks.rehearsal`)
    looked_at: bool = False  # whether `Task.ready` has added what must be known before the first step

    @property
    def held_out(self) -> tuple[str, Sequence[Example]]:
        """The rows that are answered before and after: test rows, or validation rows if there are none.

        Texts without a question are not answered, and of very many rows ``generate.max_rows``.
        """
        part, rows = ("test", self.split.test) if self.split.test else ("validation", self.split.validation)
        return part, spread(_asking(rows), self.settings.generate.max_rows)

    @property
    def sampled(self) -> Sequence[Example]:
        """The few rows that are answered as training goes on."""
        return _asking((self.split.validation or self.split.test)[:SAMPLE_ROWS])

    def usable(self, part: Part) -> Sequence[Any]:
        """The rows of a part that have something to learn."""
        return self.task.usable(self.rows[part], self.max_length)

    @property
    def training(self) -> Loader:
        """Batches of the training rows; pre-flight has refused data without one that can be trained on."""
        loader = loader_for(self, "train")
        assert loader is not None, "pre-flight refuses data without a trainable row"
        return loader


def _asking(rows: Sequence[Example]) -> Sequence[Example]:
    if isinstance(rows, Lazy):  # all of a data set are texts, or none is
        return () if rows and rows[0].text_only else rows
    return tuple(row for row in rows if not row.text_only)


def loader_for(prepared: Prepared, part: Part, ranks: Ranks = ALONE) -> Loader | None:
    """Batches of a part, without the rows that have nothing to train on; None if there are none.

    Of several processes each has its share of every step.
    """
    rows = prepared.usable(part)
    if not rows:
        return None
    options, task = prepared.settings.train, prepared.task
    training = part == "train"
    if training and prepared.rehearsal:
        rows = Joined(rows, prepared.rehearsal) if isinstance(rows, Lazy) else (*rows, *prepared.rehearsal)
    by_tokens = options.batch_tokens if training else 0
    micro_batch = options.micro_batch if by_tokens else options.micro_batch or options.batch_size
    whole = not training and not options.eval_batches and options.evaluation == "held_out"
    if whole:  # no gradient is held, so many rows go through at once; what is counted are tokens, not batches
        collate = task.collator(prepared.tokenizer.eos_id, prepared.max_length, options.layout)
        longest = task.sequences * min(prepared.max_length, int(lengths_of(task.measured(rows)).ids_R.max()))
        rows, micro_batch = together(
            rows, collate.positions, lambda row: task.answer(row).ids[: prepared.max_length],
            least=micro_batch, longest=longest, padded=options.layout == "padded",
        )  # fmt: skip
    return Loader(
        rows,
        micro_batch if whole else options.batch_size,
        pad_id=prepared.tokenizer.eos_id,
        max_length=prepared.max_length,
        micro_batch=micro_batch,
        shuffle=training,
        drop_last=options.drop_last and training,
        seed=options.seed,
        layout=options.layout,
        order=options.order,
        collator=task.collator,
        batch_tokens=by_tokens,
        share=ranks.share,
    )


def evaluator_for(prepared: Prepared, loader: Loader, ranks: Ranks = ALONE) -> Evaluator:
    """What evaluates during training, as the settings have it."""
    options, objective = prepared.settings.train, prepared.task.objective()
    by_the_book = options.evaluation == "book"  # a batch's rows are dealt; else batches are
    held_back = loader_for(prepared, "validation", ranks if by_the_book else ALONE)
    if by_the_book:

        def validation() -> Iterator[list[Batch]]:
            return held_back.draw() if held_back else iter(())

        return AsInBook(loader.draw, validation, options.eval_every, options.eval_batches, objective, ranks)
    alone = held_back is not None and held_back.micro_batch >= held_back.batch_size  # a step is one batch
    if held_back and alone and min(len(held_back), options.eval_batches or len(held_back)) > KEPT_BATCHES:
        return HeldOut(_Batches(held_back), options.eval_every, options.eval_batches, objective, ranks)
    steps = held_back.steps() if held_back else iter(())
    batches = [batch for step in islice(steps, options.eval_batches or None) for batch in step]
    return HeldOut(batches, options.eval_every, objective=objective, ranks=ranks)


class _Batches(Lazy[Batch]):
    """Batches that are made anew each time, where all of them would fill the memory."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __getitem__(self, at: Any) -> Any:
        return self.subset(range(len(self))[at]) if isinstance(at, slice) else self._loader.batch(at)
