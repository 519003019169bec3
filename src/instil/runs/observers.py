"""Observers that leave something in a run's folder: the metrics, sample answers, the adapters."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from instil.data.differences import one_line
from instil.data.shapes.shown import asked_text
from instil.data.templates import TEMPLATE_FILE
from instil.errors import DataError, counted
from instil.files import write_whole
from instil.generate.answer import answer
from instil.machine import release
from instil.model.decoder import Decoder
from instil.model.files.peft import save_adapter
from instil.records import Completion, Example
from instil.runs.folder import RUN_FILE, RunFolder
from instil.screen import Screen
from instil.settings.options import GenerateOptions
from instil.tasks.task import SAMPLE_TOKENS, Prepared
from instil.train.metrics import StepRecord
from instil.train.observer import Observer, Pause, TrainResult
from instil.train.ranks import ALONE, Ranks
from instil.train.state import TrainState

SHOWN = 100  # characters of a sample on the screen


class _Lines(Observer):
    """Appends JSON lines to a file, each complete there before the next step.

    Where training goes on (``resume``), what the file has of later steps goes: they are taken once more. What cannot be
    written, since the disk is full, is told of (``warn``) and tried again with the next line; no line is ever torn.
    """

    def __init__(self, path: Path, *, resume: bool = False, warn: Callable[[str], None] = lambda line: None) -> None:
        if not resume:
            path.write_bytes(b"")
        self._file = path.open("ab+", buffering=0)
        self._path, self._warn = path, warn
        self._waiting = b""
        self._told = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()
        if self._waiting:
            self._warn(f"{self._path}: its last lines are missing, since they could not be written")
        with suppress(OSError):
            self._file.close()

    def sync(self) -> None:
        """Wait until its lines cannot be lost."""
        os.fsync(self._file.fileno())

    def _append(self, text: str) -> None:
        self._waiting += text.encode("utf-8", "replace") + b"\n"
        self._write()

    def _write(self) -> None:
        whole = os.fstat(self._file.fileno()).st_size
        try:
            left = memoryview(self._waiting)
            while left:
                left = left[self._file.write(left) :]
            self._waiting = b""
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(whole)
            if not self._told:
                self._warn(f"{self._path}: cannot be written: {error.strerror}; training goes on and tries again")
            self._told = True

    def _only(self, lines: Iterable[str]) -> None:
        """Let the file have these lines and no others; whatever happens meanwhile, it has these or the old ones."""
        self._waiting, text = b"", "".join(lines)

        def write(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())

        write_whole(self._path, write)
        old, self._file = self._file, self._path.open("ab+", buffering=0)  # never a closed one: a signal may come
        old.close()


class MetricsFile(_Lines):
    """``metrics.jsonl``: a line for each step."""

    def on_resume(self, state: TrainState) -> None:
        self._only(json.dumps(record.as_json()) + "\n" for record in state.records)

    def on_step(self, record: StepRecord) -> None:
        self._append(json.dumps(record.as_json()))

    def on_train_end(self, decoder: Decoder, result: TrainResult) -> None:
        try:
            there = os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except OSError:
            there = False
        if not there:  # somebody has removed or replaced it meanwhile
            self._warn(f"{self._path}: it was gone by the end of the training, and is written anew")
            self._only(json.dumps(record.as_json()) + "\n" for record in result.records)


class Samples(_Lines):
    """``samples.jsonl``: the same few held-out prompts, answered as training goes on; the first one on the screen, too.

    Args:
        path: the file.
        prepared: whose rows are answered.
        screen: where the first answer is shown.
        on_answers: told of the answers and the seconds that they took.
        ranks: the processes that train; where each has a part of the model, the others have `SamplesInStep`.
    """

    def __init__(
        self,
        path: Path,
        prepared: Prepared,
        screen: Screen,
        on_answers: Callable[[Sequence[Completion], float], None] = lambda answers, seconds: None,
        *,
        resume: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(path, resume=resume, warn=lambda line: screen.warn(f"  {line}"))
        self._prepared, self._screen, self._on_answers, self._ranks = prepared, screen, on_answers, ranks

    def on_resume(self, state: TrainState) -> None:
        with self._path.open(encoding="utf-8", errors="replace", newline="\n") as file:  # a torn letter may be the last
            steps = [(line, _step_of(line)) for line in file]
        damaged = sum(step is None and line.endswith("\n") for line, step in steps)
        if damaged:  # the last one is torn where the process was killed as it wrote it
            lines = counted(damaged, "line is", "lines are")
            self._warn(f"{self._path}: {lines} damaged and left out; what they had of earlier samples is lost")
        self._only([line for line, step in steps if step is not None and step <= state.progress.done])

    def wants_pause(self, pause: Pause) -> bool:
        return _samples_at(pause, self._prepared)

    def on_pause(self, pause: Pause, decoder: Decoder) -> None:
        prepared = self._prepared
        greedy = GenerateOptions(max_new_tokens=SAMPLE_TOKENS, header=prepared.settings.generate.header)
        started = time.perf_counter()
        with self._ranks.in_step(decoder):
            answers = answer(decoder, prepared.tokenizer, prepared.template, prepared.sampled, greedy)
        self._on_answers(answers, time.perf_counter() - started)
        for number, (example, completion) in enumerate(zip(prepared.sampled, answers, strict=True)):
            line = {"step": pause.steps, "row": example.row, **_as_alpaca(example), "model_response": completion.text}
            self._append(json.dumps(line, ensure_ascii=False))
            if number == 0:
                asked, says = _short(f"{example.instruction} {example.about}"), _short(completion.text)
                self._screen.say(f"    asked: {asked}\n    says:  {says}", "dim")


class SamplesInStep(Observer):
    """Computes this process's part of the samples that the first one makes (`Samples`)."""

    def __init__(self, prepared: Prepared, ranks: Ranks) -> None:
        self._prepared, self._ranks = prepared, ranks

    def wants_pause(self, pause: Pause) -> bool:
        return _samples_at(pause, self._prepared)

    def on_pause(self, pause: Pause, decoder: Decoder) -> None:
        with self._ranks.in_step(decoder):
            pass


class SavedAdapter(Observer):
    """The adapters of a training in a folder that PEFT opens, with the template that they were tuned with."""

    def __init__(self, folder: RunFolder, prepared: Prepared) -> None:
        self._folder, self._prepared = folder, prepared

    def on_train_end(self, decoder: Decoder, result: TrainResult) -> None:
        release()  # what training took; whole weights may have to be made again
        save_adapter(decoder, self._folder.adapter, self._prepared.model_name, tied_base=self._prepared.spec.tied)
        self._folder.write_json(f"{self._folder.adapter.name}/{TEMPLATE_FILE}", self._prepared.template.as_json())


class MemoryNote(Observer):
    """Says that rows are computed in smaller pieces, since they did not fit, and writes it into ``run.toml``."""

    def __init__(self, folder: RunFolder, screen: Screen) -> None:
        self._folder, self._screen = folder, screen

    def on_out_of_memory(self, step: int, micro_batch: int) -> None:
        at_once = counted(micro_batch, "row is", "rows are")
        self._screen.warn(f"  step {step}: out of memory; from here on {at_once} computed at once, to the same sums")
        try:
            self._folder.note_micro_batch(step, micro_batch)
        except (OSError, DataError) as error:
            self._screen.warn(f"  {RUN_FILE} does not say so: {error}")


def _samples_at(pause: Pause, prepared: Prepared) -> bool:
    by_evaluation = prepared.settings.train.sample == "evaluation"
    return bool(prepared.sampled) and (pause.evaluated if by_evaluation else pause.ends_epoch)


def _as_alpaca(example: Example) -> dict[str, str]:
    """A row for people to read, whose instruction is all that was said before where it is a conversation."""
    talk = bool(example.history or example.steps)
    asked, about = (asked_text(example), "") if talk else (example.instruction, example.input)
    return {"instruction": asked, "input": about, "output": example.output}


def _step_of(line: str) -> int | None:
    """Which step a line is of; None where it is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _short(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
