"""A first verdict within a given time: a smaller run beside the whole one, as large as this machine makes it by then.

What a step and an answer take is measured on the spot, with the run's rows and model (`instil.recipes.plan.timing`).
Half of the time that is left goes into training, half into answers before and after it. The same command goes on to the
whole run, once the first verdict is there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instil.ask.journal import key_of
from instil.errors import SettingsError, counted
from instil.files import json_object_or_empty, write_json
from instil.machine import machine_memory
from instil.model.decoder import Decoder
from instil.recipes.plan.forecast import prompt_lengths, reference_lengths
from instil.recipes.plan.timing import time_answers, time_evaluation, time_steps
from instil.recipes.plan.work import Work, answering, guessed_lengths, pace_of, work_of_sizes
from instil.recipes.run.run import Run, run
from instil.runs.folder import RunFolder
from instil.runs.identity import Identity
from instil.screen import Screen, clock
from instil.settings.options import UNITS, Settings
from instil.tasks.adapters import adapt
from instil.tasks.prepare import load, prepare
from instil.tasks.task import Data, Prepared, loader_for
from instil.train.schedule import planned_steps

SUFFIX, NAME = "-first", "first.json"
SPARED = 0.8  # of the time that is left, which is planned for: the rest is for what cannot be foreseen
END = 3.0  # seconds for scores, pictures and the report
TIMED = 16  # rows whose answers are begun to see how long they take
EVALUATED = 4  # validation batches before the first step and after the last
FEWEST = 8  # rows that are answered, at least
LEAST = 32  # tokens of an answer, at least


@dataclass(frozen=True, slots=True)
class Fraction:
    """How much fits: so many steps, and so many answered rows of so many tokens at most; ``whole`` where all does."""

    steps: int
    rows: int
    tokens: int
    whole: bool = False


@dataclass(frozen=True, slots=True)
class First:
    """The first verdict: the smaller run, and what it left out."""

    run: Run
    left_out: str
    seconds: float

    def lines(self) -> list[str]:
        """What it is and what it is not."""
        return [
            f"first verdict after {clock(self.seconds)}: {self.run.verdict}",
            f"left out: {self.left_out}",
            "the same command goes on to the whole run",
        ]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**self.run.as_json(), "first": True, "left_out": self.left_out, "first_seconds": self.seconds}


def first_verdict(
    data: Data,
    model: str | Path,
    out: Path,
    settings: Settings,
    budget: float,
    *,
    since: float | None = None,
    again: bool = False,
    screen: Screen | None = None,
) -> First | None:
    """Make the smaller run in ``OUT-first``; None where it is there already, or where the whole run fits into the time.

    Args:
        data: as for `run`.
        model: as for `run`.
        out: where the whole run is to be.
        settings: those of the whole run.
        budget: seconds until the verdict.
        since: when they began (`time.perf_counter`); now by default.
        again: make it anew where it is there.
        screen: where progress is shown; stderr by default.

    Raises:
        UserError: data, model or settings cannot be used, or nothing fits into the time.
    """
    since, screen = time.perf_counter() if since is None else since, screen or Screen()
    folder = RunFolder(out.with_name(out.name + SUFFIX))
    prepared = prepare(data, model, settings, screen=Screen(quiet=True))
    key = key_of(Identity.of(prepared).short())
    if not again and folder.finished and json_object_or_empty(folder.path / NAME).get("key") == key:
        return None
    if not prepared.held_out[1]:
        raise SettingsError("no rows are held out that could be answered, so there is no verdict; leave --budget out")
    screen.head(f"What fits into {clock(budget)}")
    fraction = _what_fits(prepared, load(prepared), budget - (time.perf_counter() - since), screen)
    if fraction.whole:
        screen.say("  the whole run does")
        return None
    smaller, left_out = _smaller(prepared, fraction)
    screen.say(f"  left out: {left_out}")
    made = run(data, model, folder.path, smaller, overwrite=folder.path.exists(), screen=screen)
    found = First(made, left_out, time.perf_counter() - since)
    write_json(folder.path / NAME, {"key": key, "left_out": left_out, "seconds": found.seconds})
    return found


def seconds_of(budget: str) -> float:
    """A time as people write it.

    >>> seconds_of("60s"), seconds_of("1.5m"), seconds_of("90")
    (60.0, 90.0, 90.0)

    Raises:
        SettingsError: it is none.
    """
    number, unit = (budget[:-1], budget[-1]) if budget[-1:] in UNITS else (budget, "s")
    try:
        seconds = float(number) * UNITS[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise SettingsError(f"--budget {budget}: wanted a time, such as 60s or 5m")
    return seconds


def _what_fits(prepared: Prepared, decoder: Decoder, seconds: float, screen: Screen) -> Fraction:
    """Steps and rows for so many seconds, by the pace of a few of them.

    Raises:
        SettingsError: not even one step and a few rows.
    """
    started = time.perf_counter()
    loader, options = prepared.training, prepared.settings
    if options.train.method == "lora":
        adapt(decoder, options)
    steps = time_steps(
        prepared, decoder, loader, held=0, room=machine_memory(decoder.device), screen=screen, brief=True
    )
    examples = prepared.held_out[1]
    answers = time_answers(prepared, decoder, examples[:TIMED])
    looking = 2 * time_evaluation(prepared, decoder, loader).seconds(_validation(prepared))
    seconds = (seconds - (time.perf_counter() - started) - END) * SPARED - looking

    planned = planned_steps(len(loader), options.train)
    sizes = [work for work, _ in steps.steps]
    step = sum(pace_of(steps.steps).seconds(work) for work in sizes) / len(sizes)
    tokens = min(options.generate.max_new_tokens, max(LEAST, 2 * max(reference_lengths(prepared, examples))))

    def answered(rows: int) -> float:
        """Seconds for so many rows, before and after."""
        some = examples[:rows]
        prompts = prompt_lengths(prepared, some)
        guessed = guessed_lengths(answers.ended, answers.tokens, tokens, rows)
        each = (guessed, reference_lengths(prepared, some))
        size = options.generate.batch_size
        return sum(answers.pace.seconds(answering(prompts, lengths, size)) for lengths in each)

    if planned * step + answered(len(examples)) <= seconds:
        return Fraction(planned, len(examples), tokens, whole=True)
    fewest = min(FEWEST, len(examples))
    rows = max((n for n in _counts(fewest, len(examples)) if answered(n) <= seconds / 2), default=fewest)
    left = int((seconds - answered(rows)) / step) if step else planned
    if left < 1:
        least = clock(END + (answered(fewest) + step) / SPARED + time.perf_counter() - started)
        raise SettingsError(
            f"nothing fits into the time: {counted(fewest, 'answer')} before and after one step take {least}; "
            "raise --budget, or leave it out"
        )
    return Fraction(min(left, planned), rows, tokens)


def _validation(prepared: Prepared) -> Work:
    """The work of a look at the validation rows."""
    train = prepared.settings.train.model_copy(update={"eval_batches": EVALUATED})
    smaller = replace(prepared, settings=prepared.settings.model_copy(update={"train": train}))
    held_back = loader_for(smaller, "validation")
    if held_back is None:
        return Work()
    steps = range(min(EVALUATED, len(held_back)))
    return work_of_sizes(size for step in held_back.sizes(steps=steps) for size in step)


def _counts(fewest: int, most: int) -> Sequence[int]:
    """Numbers of rows to try, each a tenth more than the one before.

    >>> _counts(8, 20)
    [8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20]
    """
    found = [fewest]
    while found[-1] < most:
        found.append(min(most, max(found[-1] + 1, round(found[-1] * 1.1))))
    return found


def _smaller(prepared: Prepared, fraction: Fraction) -> tuple[Settings, str]:
    """The settings of the smaller run, and what it leaves out."""
    settings, train = prepared.settings, prepared.settings.train
    of_rows, of_answers = len(prepared.usable("train")), len(prepared.held_out[1])
    loader = prepared.training
    planned = planned_steps(len(loader), train)
    seen = min(of_rows, round(fraction.steps * of_rows / len(loader)))
    data = settings.data.model_copy(update={"max_train_samples": max(1, seen)})
    changed = {"max_steps": fraction.steps, "eval_every": 0, "sample": "epoch", "save_every": "0"}
    if train.evaluation == "held_out":
        changed["eval_batches"] = EVALUATED
    generate = {"max_rows": fraction.rows, "max_new_tokens": fraction.tokens, "before": "same"}
    smaller = settings.model_copy(
        update={
            "data": data,
            "train": train.model_copy(update=changed),
            "generate": settings.generate.model_copy(update=generate),
            "keep": settings.keep.model_copy(update={"measure": False}),
        }
    )
    left = [
        f"{planned - fraction.steps:,} of {counted(planned, 'step')}",
        f"{of_rows - seen:,} of {counted(of_rows, 'training row')}",
        f"{of_answers - fraction.rows:,} of {counted(of_answers, 'held-out row')}",
        "what was lost outside of the rows",
    ]
    if prepared.own_template is not None:
        left.append("the model's own form before training")
    if fraction.tokens < settings.generate.max_new_tokens:
        left.append(f"all of an answer after {fraction.tokens} tokens")
    return smaller, ", ".join(one for one in left if not one.startswith("0 of "))
