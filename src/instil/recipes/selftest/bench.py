"""What the checks work on: a model, a few rows cut short, and short trainings of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instil.data.sources import Source
from instil.errors import UserError
from instil.machine import release
from instil.model.decoder import Decoder, batch_of_ids
from instil.records import Example
from instil.settings.resolve import resolve
from instil.tasks.prepare import load, prepare, task_of
from instil.train.evaluation import Evaluation
from instil.train.loop import train
from instil.train.observer import Observer, Pause
from instil.train.optimizer import BETAS
from instil.train.state import TrainState

ROWS = 10  # of the starter rows
SHORT = 100  # characters of their questions, at most
LENGTH = 80  # tokens that are kept of each
# A learning rate that moves no weight, not even a zero: one training leaves the model as the next is to find it.
STILL = 0.0
MOMENT = "first/"  # of AdamW, in a state: after one step it is the gradient times 1 - beta
SETTINGS: Mapping[str, Any] = {
    "data.max_length": LENGTH,
    "train.batch_size": 3,
    "train.epochs": 2,
    "train.schedule": "constant",
    "train.weight_decay": 0.0,
    "train.eval_every": 0,
    "train.save_every": "0",
    "lora.rank": 4,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: its loss, and the gradient of every matrix and vector by its name."""

    loss: float
    gradients: Mapping[str, Tensor]


class Bench:
    """A model and rows to try it on.

    Args:
        model: a name, a folder or a file.

    Raises:
        UserError: the model cannot be used.
    """

    def __init__(self, model: str | Path) -> None:
        self.settings = resolve(values=SETTINGS)
        source: Source = task_of(self.settings).read("starter")
        self.examples: tuple[Example, ...] = tuple(source.examples)
        short = [one.as_json() for one in self.examples if len(one.instruction) + len(one.input) <= SHORT]
        self.prepared = prepare(short[:: len(short) // ROWS][:ROWS], model, self.settings)
        self.decoder = load(self.prepared)
        self._usual: Step | None = None

    def usual(self) -> Step:
        """One step as a run takes it; computed once, for several checks."""
        if self._usual is None:
            self._usual = self.step()
        return self._usual

    def tokens(self, rows: int) -> list[tuple[int, ...]]:
        """The ids of so many rows, as many as are kept of each."""
        usable = self.prepared.usable("train")[:rows]
        return [self.prepared.task.answer(row).ids[: self.prepared.max_length] for row in usable]

    def step(self, **changes: Any) -> Step:
        """One step of training from the model as it is, which it stays, with these settings of training."""
        options = self.settings.train.model_copy(update={"max_steps": 1, "learning_rate": STILL, **changes})
        prepared = replace(self.prepared, settings=self.settings.model_copy(update={"train": options}))
        loader, kept = prepared.training, Keeping(1, MOMENT)
        result = train(
            self.decoder,
            loader,
            options,
            evaluator=Unevaluated(),
            observers=[kept],
            seen_ids=loader.ids(),
            objective=prepared.task.objective(),
        )
        loss = result.records[-1].train_loss
        assert kept.state is not None
        assert loss is not None
        moments = kept.state.tensors.items()
        return Step(loss, {name.removeprefix(MOMENT): one.div_(1 - BETAS[0]) for name, one in moments})

    def fresh(self) -> Decoder:
        """The model as its files have it, in place of the one that was changed."""
        self.decoder = None  # type: ignore[assignment]  # before there is another
        self._usual = None
        release()
        self.decoder = load(self.prepared)
        return self.decoder

    @torch.inference_mode()
    def scores(self, decoder: Decoder, ids: tuple[int, ...]) -> Tensor:
        """The scores of every next token of a text."""
        return decoder.logits(decoder(batch_of_ids(torch.tensor([ids], device=decoder.device))))


class Keeping(Observer):
    """Keeps the state of a training after so many steps; of its tensors those whose names begin so."""

    def __init__(self, after: int, only: str = "") -> None:
        self._after, self._only = after, only
        self.state: TrainState | None = None

    def wants_state(self, pause: Pause) -> bool:
        return pause.steps == self._after

    def on_state(self, state: TrainState) -> None:
        tensors = {name: one for name, one in state.tensors.items() if name.startswith(self._only)}
        self.state = replace(state, tensors=tensors).copied()


class Unevaluated:
    """Evaluates nothing."""

    def __call__(self, decoder: Decoder) -> Evaluation:
        del decoder
        return Evaluation(None)

    def due(self, done: int, ends_epoch: bool) -> bool:
        del done, ends_epoch
        return False


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards.

    Raises:
        UserError: there is no room for temporary files.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="instil-selftest-") as folder:
            yield Path(folder)
    except OSError as error:
        where = tempfile.gettempdir()
        raise UserError(
            f"{where}: {error.strerror or error}; make room, or set TMPDIR to a folder with more"
        ) from error


def apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The greatest difference of any number, relative to the largest among all that are wanted; inf for other shapes.

    An entry that is a small difference of large terms carries the rounding of those terms, so entry by entry there is
    no bound on the relative difference; normwise there is (Higham, Accuracy and Stability of Numerical Algorithms,
    3.5).
    """
    if found.keys() != wanted.keys() or any(found[name].shape != wanted[name].shape for name in wanted):
        return float("inf")
    largest = max(float(one.abs().max()) for one in wanted.values())
    greatest = max(float((found[name] - one).abs().max()) for name, one in wanted.items())
    return greatest / largest if largest else greatest


def differing(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """How many numbers are not the same, bit by bit; inf for other shapes."""
    if found.keys() != wanted.keys() or any(found[name].shape != wanted[name].shape for name in wanted):
        return float("inf")
    return float(sum(int((found[name] != one).sum()) for name, one in wanted.items()))
