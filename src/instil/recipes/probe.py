"""Which learning rate: short runs from the same weights, judged by their validation loss, the better half going on.

Every run has the whole schedule of the settings, pressed into its steps, and the same rows in the same order. The
better half of the rates is tried again with twice the steps (successive halving, Jamieson and Talwalkar 2016, arXiv
1502.07943), until two are left or as many steps as the real run has. Test rows are not looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from instil.ask.journal import key_of
from instil.errors import DataError, SettingsError, TrainingDiverged, counted
from instil.files import check_folder, make_folder, write_json
from instil.machine import available_memory
from instil.model.decoder import Decoder
from instil.model.fast.gemm import backend, own_products, use_again
from instil.runs.facts import input_hashes
from instil.runs.kept import Kept
from instil.runs.report.curves import plot_rates
from instil.screen import Screen, clock
from instil.settings.options import Settings
from instil.tasks.adapters import adapt
from instil.tasks.prepare import load, prepare, task_of
from instil.tasks.task import Data, Prepared, evaluator_for, loader_for
from instil.train.evaluation import Evaluation, Evaluator
from instil.train.loop import train
from instil.train.metrics import StepRecord
from instil.train.observer import Observer
from instil.train.schedule import planned_steps
from instil.version import __version__

RATES = {  # about the usual one of each method, each about three times the one before
    "full": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    "lora": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}
SHARE = 30  # of the real run's steps, in the first round
FEWEST, MOST = 10, 100  # steps of the first round, where nothing else is said
JOURNAL = "probe.journal"
NO_MATTER = {"learning_rate", "patience", "sample", "save_every", "keep_checkpoint", "max_steps", "epochs"}
ROOM = 3  # times the trained weights that must be free to keep a copy of them


@dataclass(frozen=True, slots=True)
class Tried:
    """A rate after so many steps; without a loss it diverged."""

    rate: float
    steps: int
    loss: float | None


@dataclass(frozen=True, slots=True)
class Probed:
    """What came of it: every trial in order, the validation loss before any training, and the rate to take.

    ``usual`` are the rates that are tried where none are given.
    """

    model: str
    data: str
    method: str
    untrained: float
    real_steps: int
    tried: tuple[Tried, ...]
    seconds: float
    usual: tuple[float, ...] = ()

    @property
    def rates(self) -> list[float]:
        """All rates, ascending."""
        return sorted({one.rate for one in self.tried})

    @property
    def best(self) -> Tried | None:
        """The lowest loss of the last round; None where no run was better than no training."""
        usable = [one for one in self.tried if one.loss is not None and one.loss < self.untrained]
        if not usable:
            return None
        last = max(one.steps for one in usable)
        return min((one for one in usable if one.steps == last), key=lambda one: (one.loss or 0.0, one.rate))

    def losses(self, rate: float) -> dict[int, float | None]:
        """Of one rate: the loss after each number of steps."""
        return {one.steps: one.loss for one in self.tried if one.rate == rate}

    def advice(self) -> list[str]:
        """What to do with it."""
        if self.best is None:
            none = f"no rate came below the {self.untrained:.3f} that the model has without training"
            if self.usual and (self.rates[0] / 10 > self.usual[-1] or self.rates[-1] < self.usual[0]):
                rates = ",".join(f"{rate:g}" for rate in self.usual)
                return [f"{none}; try rates about the usual ones (--rates {rates}, as without --rates)"]
            lower = f"{self.rates[0] / 10:.2g},{self.rates[0] / 3:.2g}"
            return [f"{none}; try lower rates (--rates {lower}) or more --steps"]
        lines = [f"--set train.learning_rate={self.best.rate:g}"]
        if len(self.rates) > 1 and self.best.rate in (self.rates[0], self.rates[-1]):
            way, factors = ("lowest", (0.1, 0.3)) if self.best.rate == self.rates[0] else ("highest", (3, 10))
            more = ",".join(f"{self.best.rate * factor:.2g}" for factor in factors)
            lines.append(
                f"that is the {way} rate tried, so a better one may lie beyond: --rates {more},{self.best.rate:g}"
            )
        if self.best.steps < self.real_steps:
            lines.append(
                f"found in runs of {counted(self.best.steps, 'step')}; the real run has {self.real_steps}, for which "
                "somewhat lower rates are often better still"
            )
        return lines

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "model": self.model,
            "data": self.data,
            "method": self.method,
            "validation_loss_untrained": self.untrained,
            "tried": [{"rate": one.rate, "steps": one.steps, "validation_loss": one.loss} for one in self.tried],
            "learning_rate": self.best.rate if self.best else None,
            "advice": self.advice(),
            "seconds": round(self.seconds, 2),
        }


def probe(
    data: Data,
    model: str | Path,
    settings: Settings,
    *,
    rates: Sequence[float] = (),
    steps: int = 0,
    out: Path | None = None,
    resume: bool = False,
    screen: Screen | None = None,
) -> Probed:
    """Try learning rates; the model's files are only read.

    Args:
        data: the rows, as for `run`.
        model: the model, as for `run`.
        settings: of the real run; its learning rate does not matter.
        rates: those to try; by default six about what is usual for ``train.method``.
        steps: of each run of the first round; by default a thirtieth of the real run's, 10 to 100.
        out: a folder that gets ``probe.png`` and ``probe.json``, and every loss as it is found (``probe.journal``).
        resume: take over the losses that ``out`` has of the same rows, model and settings.
        screen: where progress is shown; stderr by default.

    Raises:
        UserError: data, model or settings cannot be used, or no rows are held out for validation.
    """
    screen = screen or Screen()
    wanted = _checked(rates or _usual(settings))
    if resume and out is None:
        raise SettingsError("--resume goes on with what lies in the folder of --out; name it")
    if out is not None:
        check_folder(out)
    held_out = settings.train.model_copy(update={"evaluation": "held_out"})  # the book's way moves the order of rows
    prepared = prepare(data, model, settings.model_copy(update={"train": held_out}), screen=screen)
    if loader_for(prepared, "validation") is None:
        raise DataError(f"{prepared.source.name}: no rows are held out for validation, by which rates are judged")
    loader = prepared.training
    real = planned_steps(len(loader), settings.train)
    rounds = planned_rounds(len(wanted), steps or min(max(real // SHARE, FEWEST), MOST), real)
    total = sum(count * each for count, each in rounds)
    screen.head(f"Probing {counted(len(wanted), 'learning rate')}")
    screen.say(f"  {_said(rounds)}: {counted(total, 'step')}, {total / real:.0%} of the {real} of the real run")
    if out is not None:
        make_folder(out)  # what cannot be made is found before the work
        if not resume:
            (out / JOURNAL).unlink(missing_ok=True)
    started = time.perf_counter()
    tried: list[Tried] = []
    others = settings.model_dump(mode="json", include={"model", "data", "lora", "dpo"})
    training = prepared.settings.train.model_dump(mode="json", exclude=NO_MATTER)
    about = key_of(__version__, input_hashes(prepared), training, others)
    with (
        own_products(),
        Kept(out and out / JOURNAL, screen, about) as journal,
        screen.bar("probing", total) as advance,
    ):
        bench = _Bench(prepared, screen, total, journal)
        bench.advance = advance
        left = list(wanted)
        for count, each in rounds:
            found = [bench.attempt(rate, each) for rate in left[:count]]
            tried += found
            usable = sorted((one for one in found if one.loss is not None), key=lambda one: one.loss or 0.0)
            left = [one.rate for one in usable]
            if len(left) < 2:
                break
    assert bench.untrained is not None
    probed = Probed(
        model=prepared.model_name,
        data=prepared.source.name,
        method=settings.train.method,
        untrained=bench.untrained,
        real_steps=real,
        tried=tuple(tried),
        seconds=time.perf_counter() - started,
        usual=tuple(_usual(settings)),
    )
    if out is not None:
        plot_rates({each: _curve(tried, each) for _, each in rounds}, probed.untrained, out / "probe.png")
        write_json(out / "probe.json", probed.as_json(), ascii_only=True)
    return probed


def planned_rounds(rates: int, steps: int, real: int) -> list[tuple[int, int]]:
    """How many rates are tried for how many steps, round after round.

    >>> planned_rounds(6, 10, 1000)
    [(6, 10), (3, 20), (2, 40)]
    >>> planned_rounds(6, 10, 15)
    [(6, 10), (3, 15)]
    """
    rounds = [(rates, min(steps, real))]
    while rounds[-1][0] > 2 and rounds[-1][1] < real:
        count, each = rounds[-1]
        rounds.append(((count + 1) // 2, min(2 * each, real)))
    return rounds


class _Bench:
    """Makes short runs, each from the same weights."""

    def __init__(self, prepared: Prepared, screen: Screen, total: int, journal: Kept) -> None:
        self._screen, self._total, self._journal = screen, total, journal
        self._done, self._started = 0, time.perf_counter()
        self.advance: Any = lambda note="": None
        self.untrained: float | None = None
        if products := journal.kept("products"):  # the losses to come round as those that are there
            use_again(products)
        else:
            journal.keep("products", backend())
        decoder = load(prepared)
        self._prepared = prepared.task.ready(prepared, decoder, screen, all_rows=True, journal=journal)
        self._decoder: Decoder | None = self._adapted(decoder)
        parameters = [one for one in self._decoder.parameters() if one.requires_grad]
        size = sum(one.numel() * one.element_size() for one in parameters)
        self._kept: list[torch.Tensor] | None = None
        if ROOM * size < available_memory(self._decoder.device):
            self._kept = [one.detach().clone() for one in parameters]

    def attempt(self, rate: float, steps: int) -> Tried:
        """One short run, on the same rows as every other of so many steps; not one that the journal has."""
        key = key_of(rate, steps)
        if (known := self._journal.kept(key)) is not None:
            self.untrained, self._total = known["untrained"], self._total - steps
            self.advance(steps=steps)
            return Tried(rate, steps, known["loss"])
        decoder = self._restored()
        loader = self._prepared.training
        options = self._prepared.settings.train.model_copy(
            update={
                "learning_rate": rate,
                "max_steps": steps,
                "epochs": math.ceil(steps / len(loader)),
                "patience": 0,
                "sample": "epoch",
            }
        )
        if options.order == "book":
            torch.manual_seed(options.seed)
        evaluator = _AtTheEnds(evaluator_for(self._prepared, loader), steps, self.untrained)

        loss = None
        try:
            result = train(
                decoder,
                loader,
                options,
                evaluator=evaluator,
                observers=[_Bar(rate, self.advance)],
                seen_ids=loader.ids(),
                objective=self._prepared.task.objective(),
            )
            loss = result.validation_loss
        except TrainingDiverged:
            if evaluator.before is None:  # without any training: no rate is to blame
                raise
        finally:
            self.untrained = evaluator.before
        self._say(rate, steps, loss)
        self._journal.keep(key, {"loss": loss, "untrained": self.untrained})
        return Tried(rate, steps, loss)

    def _say(self, rate: float, steps: int, loss: float | None) -> None:
        self._done += steps
        spent = time.perf_counter() - self._started
        left = clock(spent / self._done * (self._total - self._done))
        said = "diverged" if loss is None else f"validation loss {loss:.3f}"
        self._screen.say(f"  rate {rate:<8g} {steps:>4} steps  {said}  {left} left")

    def _adapted(self, decoder: Decoder) -> Decoder:
        if self._prepared.settings.train.method == "lora":
            adapt(decoder, self._prepared.settings)
        return decoder

    @torch.no_grad()
    def _restored(self) -> Decoder:
        """The decoder as it was at first: from memory, or where that has no room for a copy, from its file."""
        if self._kept is None and self._done:
            self._decoder = None  # before the next is made
        if self._decoder is None:
            self._decoder = self._adapted(load(self._prepared))
        elif self._kept is not None:
            parameters = [one for one in self._decoder.parameters() if one.requires_grad]
            for parameter, kept in zip(parameters, self._kept, strict=True):
                parameter.copy_(kept)
        return self._decoder


class _Bar(Observer):
    """Moves the bar."""

    def __init__(self, rate: float, advance: Any) -> None:
        self._rate, self._advance = rate, advance

    def on_step(self, record: StepRecord) -> None:
        if record.step:
            self._advance(f"rate {self._rate:g}  loss {record.train_loss:.3f}")


class _AtTheEnds:
    """Evaluates before the first step, which is the same for every run and computed once, and after the last one."""

    def __init__(self, evaluator: Evaluator, steps: int, before: float | None) -> None:
        self._evaluator, self._steps, self.before = evaluator, steps, before
        self._begun = False

    def __call__(self, decoder: Decoder) -> Evaluation:
        if not self._begun:
            self._begun = True
            if self.before is None:
                found = self._evaluator(decoder).validation
                self.before = found if found is not None and math.isfinite(found) else None
                return Evaluation(found)
            return Evaluation(self.before)
        return self._evaluator(decoder)

    def due(self, done: int, ends_epoch: bool) -> bool:
        del ends_epoch
        return done == self._steps


def _usual(settings: Settings) -> Sequence[float]:
    """Rates about what is usual."""
    return [float(f"{rate / task_of(settings).gentler:.2g}") for rate in RATES[settings.train.method]]


def _checked(rates: Sequence[float]) -> list[float]:
    """Rates in ascending order, each once."""
    wrong = [rate for rate in rates if not math.isfinite(rate) or rate <= 0]
    if wrong:
        raise SettingsError(f"--rates: {wrong[0]:g} is no learning rate; wanted numbers above 0, such as 1e-5,1e-4")
    return sorted(set(rates))


def _said(rounds: Sequence[tuple[int, int]]) -> str:
    """What will be tried.

    >>> _said([(6, 10), (3, 20)])
    '6 rates for 10 steps, then the best 3 for 20'
    """
    (count, steps), *others = rounds
    named = f"{counted(count, 'rate')} for {counted(steps, 'step')}"
    return ", then ".join([named, *(f"the best {count} for {steps}" for count, steps in others)])


def _curve(tried: Sequence[Tried], steps: int) -> list[tuple[float, float | None]]:
    return sorted((one.rate, one.loss) for one in tried if one.steps == steps)
