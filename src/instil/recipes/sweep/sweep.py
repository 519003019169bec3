"""Several runs, each in a folder of its own, and a table of what they came to. The same command goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from instil.ask.named import opened
from instil.errors import InstilError, RunFolderTaken, StoppedEarly, UserError, counted
from instil.evaluate.likelihood import JUDGE as LIKELIHOOD
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.files import FULL, check_folder, json_text, make_folder, write_whole
from instil.machine import available_memory, device_for, machine_memory, memory_now, release
from instil.model.load import blank_decoder
from instil.recipes.run.run import run
from instil.recipes.run.training import forget_checkpoints
from instil.recipes.sweep.file import Overrides, PlannedRun, SweepFile, read_sweep
from instil.recipes.sweep.page import write_page
from instil.recipes.sweep.process import reason_of, run_apart
from instil.recipes.sweep.rows import Measured, against, measure, row_of
from instil.recipes.sweep.table import Status, SweepRow, SweepTable
from instil.runs.folder import RunFolder
from instil.runs.identity import Identity, State, clear_leftovers, state_of
from instil.runs.report.curves import plot_runs
from instil.runs.status import idle, room
from instil.screen import Screen, clock
from instil.tasks.prepare import as_found, prepare
from instil.tasks.task import Prepared
from instil.train.metrics import StepRecord, read_metrics

# Settings with which the rows, the model and the pre-flight are the same, so that it is done once for all of them.
SAME_ROWS: dict[str, Any] = {
    "train": {"learning_rate", "weight_decay", "warmup", "schedule", "clip", "seed", "epochs", "max_steps"},
    "generate": True,
    "score": True,
}
FLOAT = 4  # bytes of a weight
HELD = {"full": 3, "lora": 1}  # how many times the weights are in memory at least: AdamW has two moments of each
KEPT = 0.05  # share of the machine's memory that earlier runs may leave taken before the next gets its own process


@dataclass(frozen=True, slots=True)
class SweepResult:
    """A sweep that is done: where it lies, its table, and runs whose answers could not all be judged.

    Of the runs that failed ``early`` ones were stopped (for want of room, say) and can go on.
    """

    path: Path
    table: SweepTable
    unjudged: dict[str, str]
    early: frozenset[str] = frozenset()

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"out": str(self.path), **self.table.as_json()}

    def check(self) -> None:
        """Whether everything worked.

        Raises:
            InstilError: a run failed.
            StoppedEarly: those that did were stopped and can go on, or a judge did not answer.
        """
        failed = self.table.failed
        if failed:
            shown = "; ".join(f"{row.name}: {row.reason}" for row in failed)
            ended = StoppedEarly if all(row.name in self.early for row in failed) else InstilError
            raise ended(f"{len(failed)} of {counted(len(self.table.rows), 'run')} failed. {shown}")
        if self.unjudged:
            shown = "; ".join(f"{name}: {reason}" for name, reason in self.unjudged.items())
            raise StoppedEarly(f"not everything is judged, and the same command goes on. {shown}")


@dataclass(frozen=True, slots=True)
class Place:
    """A run to be made, the folder it belongs into, and what is there."""

    planned: PlannedRun
    folder: RunFolder
    identity: Identity
    state: State
    weights: int


def sweep(
    path: Path,
    over: Overrides | None = None,
    *,
    overwrite: bool = False,
    processes: bool = False,
    screen: Screen | None = None,
) -> SweepResult:
    """Make the runs of a file one after the other, but for those that are finished; write the table as it grows.

    One that was stopped in the middle goes on where it was (``instil run --resume``).

    Args:
        path: see `instil.recipes.sweep.file`.
        over: what stands in for something in the file.
        overwrite: replace finished runs that are other ones than the file asks for.
        processes: each run in a process of its own; else only those that memory does not allow in this one.
        screen: where progress is shown; stderr by default.

    Raises:
        UserError: the file, or data, model or settings of a run, cannot be used; nothing was written.
        RunFolderTaken: a folder holds another run, or another process is at work there.
        StoppedEarly: there is no room for the table, or for the scores of a run.
    """
    screen = screen or Screen()
    file = read_sweep(path, over)
    check_folder(file.out)
    screen.head(f"Checking {counted(len(file.runs), 'run')}")
    places = _look(file, screen, overwrite=overwrite)
    _check_judge(file, screen)
    make_folder(file.out)
    with _alone(file.out), room(file.out):  # another sweep may have been at work here until now
        places = [replace(place, state=state_of(place.folder, place.identity, overwrite=overwrite)) for place in places]
        return _Sweep(file, places, screen, processes=processes).go()


def _look(file: SweepFile, screen: Screen, *, overwrite: bool) -> list[Place]:
    """Prepare every run once, which finds what cannot be used, and see what is in its folder."""
    seen: dict[str, Prepared] = {}
    places = []
    for planned in file.runs:
        same = json.dumps([planned.data, planned.model, planned.settings.model_dump(mode="json", exclude=SAME_ROWS)])
        try:
            if same not in seen:
                seen.clear()  # rows of one at a time
                seen[same] = prepare(planned.data, planned.model, planned.settings, screen=screen)
        except UserError as error:
            raise type(error)(f"{file.path}, run {planned.name!r}: {error}") from error
        prepared = seen[same]
        identity = Identity.of(replace(prepared, settings=as_found(planned.settings, prepared)))
        folder = RunFolder(file.out / planned.folder)
        state = state_of(folder, identity, overwrite=overwrite)
        weights = FLOAT * blank_decoder(prepared.spec).parameter_count
        places.append(Place(planned, folder, identity, state, weights * HELD[planned.settings.train.method]))
    return places


def _check_judge(file: SweepFile, screen: Screen) -> None:
    """Whether the judge is there, before anything is trained."""
    if file.judge not in (OFFLINE, LIKELIHOOD):
        with opened(file.judge, file.runs[0].settings.score, screen.warn):
            pass


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One sweep at a time in a folder."""
    lock = FileLock(out / ".sweep.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunFolderTaken(f"{out}: another sweep is at work there; wait for it, or stop it") from error
    try:
        yield
    finally:
        lock.release()


class _Sweep:
    """The runs of a file being made."""

    def __init__(self, file: SweepFile, places: Sequence[Place], screen: Screen, *, processes: bool) -> None:
        self._file, self._places, self._screen, self._processes = file, places, screen, processes
        self._rows = [SweepRow(place.planned.name, str(place.folder.path)) for place in places]
        self._curves: dict[str, list[StepRecord]] = {}
        self._first: Measured | None = None
        self._unjudged: dict[str, str] = {}
        self._early: set[str] = set()
        self._at_start = memory_now()
        self._spent: list[float] = []  # seconds of each run made now

    def go(self) -> SweepResult:
        """All of them."""
        table = self._table()
        for number, place in enumerate(self._places):
            self._screen.head(f"Run {number + 1} of {len(self._places)}: {place.planned.name}")
            self._rows[number] = row = self._one(number, place)
            table = self._write()
            self._screen.say(f"{row.name}: {self._line(row)}", "bold red" if row.status == "failed" else "bold")
            self._say_left(number)
        return SweepResult(self._file.out, table, self._unjudged, frozenset(self._early))

    def _one(self, number: int, place: Place) -> SweepRow:
        status: Status = "kept"
        if place.state == "finished":
            self._screen.say(f"  is finished already, in {place.folder.path}; kept as it is")
            self._tidy(place)
        else:
            if place.state == "begun":
                self._screen.say(f"  {place.folder.path} holds this run, not finished; it goes on")
            if place.state == "unfinished":
                self._screen.say(f"  {place.folder.path} holds a run that is not finished or is another one; done anew")
            status = "done"
            try:
                self._make(place)
            except Exception as error:  # whatever it is, the other runs are not lost by it
                if isinstance(error, StoppedEarly):
                    self._early.add(place.planned.name)
                reason = reason_of(error, place.folder.path if place.state == "begun" else None)
                return replace(self._rows[number], status="failed", reason=reason)
            finally:
                release()
        try:
            return self._compared(number, place, status)
        except (InstilError, OSError) as error:  # a file of it is damaged, or cannot be written
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            advice = f"remove {place.folder.path} to have the run made anew"
            return replace(self._rows[number], status="failed", reason=f"{reason_of(error)}; {advice}")

    def _tidy(self, place: Place) -> None:
        """Remove the checkpoints of a finished run that was killed before it did so itself."""
        if any(place.folder.checkpoints.glob("*")):
            with suppress(RunFolderTaken), idle(place.folder.path):
                forget_checkpoints(place.folder, self._screen, keep=place.planned.settings.train.keep_checkpoint)

    def _make(self, place: Place) -> None:
        """The ordinary run, here or in a process of its own."""
        planned = place.planned
        finished = [Path(row.folder) for row in self._rows if row.finished]
        clear_leftovers(place.folder)
        options: dict[str, Any] = {
            "settings": planned.settings,
            "overwrite": place.state == "unfinished",
            "resume": place.state == "begun",
            "before": finished,
        }
        if self._processes or self._too_full(place):
            run_apart(planned.data, planned.model, place.folder.path, quiet=self._screen.quiet, **options)
        else:
            run(planned.data, planned.model, place.folder.path, screen=self._screen, **options)

    def _too_full(self, place: Place) -> bool:
        """Whether memory does not allow this run in this process."""
        left = memory_now() - self._at_start
        device = torch.device(device_for(place.planned.settings.train.device))
        free = available_memory(device)
        if place.weights > free:
            need, free_gb = place.weights / 1e9, free / 1e9
            self._screen.say(
                f"  needs {need:.1f} GB and more, {free_gb:.1f} are free: in a process of its own", "yellow"
            )
            return True
        return bool(self._spent) and left > KEPT * machine_memory()

    def _compared(self, number: int, place: Place, status: Status) -> SweepRow:
        """The row of a run that is finished, judged and compared."""
        name, measured = place.planned.name, {}
        try:
            measured = measure(place.folder, self._file.judge, place.planned.settings, self._screen)
        except (UserError, StoppedEarly, RunFolderTaken) as error:
            if self._file.judge == OFFLINE:
                raise
            self._unjudged[name] = str(error)
            self._screen.say(f"  not judged: {error}", "yellow")
        for which, one in measured.items():
            if one.scored.failed:
                self._unjudged[name] = f"{counted(len(one.scored.failed), 'answer')} ({which}) could not be judged"
        row = row_of(name, place.folder, status, measured)
        self._curves[name] = read_metrics(place.folder.metrics)
        if row.seconds is not None and status == "done":
            self._spent.append(row.seconds)
        if not measured:
            return row
        if number == 0:
            self._first = measured["tuned"]
        elif self._first is not None:
            names = self._rows[0].name, name
            found = against(self._first, measured["tuned"], names, self._file.judge)
            if found is not None:
                return replace(row, against=found.comparison, clean=found.clean)
        return row

    def _table(self) -> SweepTable:
        return SweepTable.of(str(self._file.path), self._file.judge, self._rows)

    def _write(self) -> SweepTable:
        """Everything that is known so far, in all its forms."""
        table, out = self._table(), self._file.out
        picture = out / "loss.png"
        plot_runs(self._curves, picture)
        write_whole(out / "sweep.json", json_text(table.as_json()), replace_surrogates=True)
        write_whole(out / "sweep.csv", table.as_csv(), replace_surrogates=True)
        write_whole(out / "sweep.md", table.as_markdown(), replace_surrogates=True)
        write_page(table, picture, out / "sweep.html")
        return table

    def _line(self, row: SweepRow) -> str:
        if row.status == "failed":
            return f"failed: {row.reason}"
        said = [f"took {clock(row.seconds or 0.0)}"]
        if row.validation_loss is not None:
            said.append(f"validation loss {row.validation_loss:.3f}")
        if row.before and row.after:
            said.append(f"score {row.before.mean:.1f} before, {row.after.text()} after")
        if row.against:
            said.append(row.against.sentence(self._rows[0].name, row.name))
        return ", ".join(said)

    def _say_left(self, number: int) -> None:
        left = sum(place.state != "finished" for place in self._places[number + 1 :])
        if left and self._spent:
            about = clock(left * sum(self._spent) / len(self._spent))
            self._screen.say(f"{left} more to make; about {about} to go if they take as long")
