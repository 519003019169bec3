"""The training of a run, and what it leaves in the run's folder."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from signal import SIGTERM
from typing import Any

from instil.assistant.folder import export_folder
from instil.errors import InstilError, OutOfMemory, RankLost, StoppedEarly, TrainingStopped
from instil.files import FULL
from instil.model.decoder import Decoder
from instil.recipes.plan.clock import RunClock
from instil.recipes.plan.forecast import Forecast
from instil.recipes.run.crew import Crew, echo
from instil.runs.best import BestOnDisk
from instil.runs.checkpoints import BEST, Checkpoints, Found
from instil.runs.extending import extended, former
from instil.runs.facts import by_chance, unlike, versions
from instil.runs.folder import RunFolder
from instil.runs.identity import Identity
from instil.runs.kept import Kept, forget_kept
from instil.runs.loggers.observer import Logs
from instil.runs.observers import MemoryNote, MetricsFile, Samples, SavedAdapter
from instil.runs.proof import ProvesResume
from instil.runs.report.curves import plot_losses
from instil.runs.rewinding import EarlierOnDisk
from instil.runs.saving import SavesCheckpoints, StopsBySignal
from instil.runs.sharded import ShardedCheckpoints
from instil.runs.status import Work
from instil.screen import Screen
from instil.stopping import Stop, Stopped
from instil.tasks.adapters import AdapterNote, MergeError
from instil.tasks.prepare import first_weights
from instil.tasks.progress import progress
from instil.tasks.task import Prepared
from instil.tasks.tune import tune
from instil.train.best import SharedBest
from instil.train.observer import Observer, TrainResult
from instil.train.ranks import Ranks
from instil.train.schedule import planned_steps
from instil.train.state import TrainState

CHECKED_ROWS = 5  # whose ids are looked at again in what was saved


def train_and_save(
    prepared: Prepared,
    decoder: Decoder,
    folder: RunFolder,
    clock: RunClock,
    forecast: Forecast,
    work: Work,
    journal: Kept,
    crew: Crew,
    *,
    resume: bool = False,
    force: bool = False,
) -> TrainResult:
    """Train and save the model, with metrics, samples, adapters and loss curves beside it.

    With ``resume`` it goes on from the newest checkpoint that is whole, if it goes on as it was (`ProvesResume`), or in
    any case with ``force``. Checkpoints stay until `forget_checkpoints`.

    Raises:
        Stopped: a signal came; where steps were taken, they are saved.
        StoppedEarly: the disk is full or fails, and the training is kept as it was after some step.
        OSError: the disk is full, and no step was taken.
        InstilError: it is full or fails, and nothing of it is kept; or it cannot go on for another reason.
    """
    prepared = _as_it_fits(prepared, folder)
    facts, now = folder.read_settings(), {**versions(decoder.device), **_pieces(prepared, crew.ranks)}
    about: dict[str, Any] = {"former": former(facts, prepared), "versions": now}
    kind = functools.partial(ShardedCheckpoints, ranks=crew.ranks) if crew.ranks.sharded else Checkpoints
    checkpoints = kind(folder.checkpoints, Identity.of(prepared).short(), **about)
    screen, begin = clock.screen, _From(None)
    screen.head("Training")
    try:
        with BestOnDisk(folder.checkpoints / BEST, screen.warn) as best:
            with clock.stage("train"):
                if resume:
                    began = facts.get("versions", {})
                    begin = _taken_up(prepared, folder, checkpoints, began, screen, force=force)
                with crew.training(prepared, decoder, folder, checkpoints.former, begin.state):
                    ready = prepared.task.ready(prepared, decoder, screen, journal=journal, ranks=crew.ranks)
                    result = _train(ready, decoder, folder, checkpoints, best, clock, forecast, work, begin, crew.ranks)
            with clock.stage("save"), crew.saving(decoder) as saved:
                for line in _save(prepared, saved, folder, checkpoints, screen):
                    screen.say(f"  {line}", "yellow")
                plot_losses(result.records, folder.path)
    except MergeError as error:
        raise InstilError(f"{error}; they lie in {folder.adapter}") from error
    except OSError as error:
        kept, rescue = _rescue(checkpoints, work)
        if not kept and not work.status.done and error.errno in FULL:
            raise  # no step is lost, so it is as with any other file before training
        ended = StoppedEarly if kept else InstilError
        raise ended(f"{error.filename or folder.path}: {error.strerror or error}. {rescue}") from error
    except (OutOfMemory, RankLost) as error:
        raise type(error)(f"{error}. {_rescue(checkpoints, work)[1]}") from error
    return result


@dataclass(frozen=True, slots=True)
class _From:
    """Where a training begins: at its beginning, or in a state, which is to be proved."""

    state: TrainState | None
    proof: ProvesResume | None = None


def _taken_up(
    prepared: Prepared,
    folder: RunFolder,
    checkpoints: Checkpoints,
    began: Mapping[str, Any],
    screen: Screen,
    *,
    force: bool,
) -> _From:
    """The newest checkpoint that is whole, and what tells whether training goes on from it as it was."""
    found = _found(checkpoints, screen)
    if found.state is None:
        return _From(None)
    planned = planned_steps(len(prepared.training), prepared.settings.train)
    longer = found.state.progress.planned != planned
    elsewhere = unlike(found.versions or began, checkpoints.versions) or by_chance(checkpoints.versions)
    left = None if longer else folder.metrics
    return _From(extended(found.state, planned), ProvesResume(left, screen, elsewhere, force=force))


def _pieces(prepared: Prepared, ranks: Ranks) -> dict[str, Any]:
    """Into what a step is divided, which changes last bits and no more."""
    train = prepared.settings.train
    return {
        "train.micro_batch": train.micro_batch,
        "train.gradient_checkpointing": train.gradient_checkpointing,
        "number of processes": ranks.world,
        "train.shard": train.shard if not ranks.alone else "no",
    }


def _train(
    prepared: Prepared,
    decoder: Decoder,
    folder: RunFolder,
    checkpoints: Checkpoints,
    best: BestOnDisk,
    clock: RunClock,
    forecast: Forecast,
    work: Work,
    begin: _From,
    ranks: Ranks,
) -> TrainResult:
    screen, train, resume = clock.screen, prepared.settings.train, begin.state is not None
    with (
        MetricsFile(folder.metrics, resume=resume, warn=screen.warn) as metrics,
        Samples(folder.samples, prepared, screen, forecast.saw_sample, resume=resume, ranks=ranks) as samples,
        progress(prepared, screen) as shown,
        Logs(prepared.settings.log, folder, screen) as logs,
        Stop(quiet=screen.quiet, echo=echo(ranks)) as stop,
    ):
        observers: list[Observer] = [work, *([begin.proof] if begin.proof else []), metrics, forecast, shown]
        observers += [*prepared.task.observers(screen), samples]
        synced, keep = (metrics.sync, samples.sync), train.keep_checkpoint
        saving = SavesCheckpoints(checkpoints, train.save_every, screen, first=synced, at_the_end=keep)
        observers += [saving, StopsBySignal(stop), MemoryNote(folder, screen)]
        if train.method == "lora":
            note = AdapterNote(prepared.settings, decoder.parameter_count, screen)
            observers += [note, SavedAdapter(folder, prepared)]
        observers.append(logs)  # the last, since it may wait for others when training ends
        since = begin.state.progress.done if begin.state else 0
        first = functools.partial(first_weights, prepared, elsewhere=ranks.sharded)
        earlier = EarlierOnDisk(checkpoints, folder.skipped, screen, first, begins=since)
        try:
            kept = best if ranks.alone else SharedBest(ranks, best)
            result = tune(prepared, decoder, observers, kept, begin.state, earlier, ranks)
        except TrainingStopped as error:
            raise Stopped(stop.number or SIGTERM, _kept(saving, work)) from error
    return result


def _save(
    prepared: Prepared, decoder: Decoder, folder: RunFolder, checkpoints: Checkpoints, screen: Screen
) -> list[str]:
    """Save the model; where the disk is full, in the place of all checkpoints but the newest.

    Raises:
        OSError: it cannot be saved.
    """
    rows = prepared.split.train[:CHECKED_ROWS]

    def export() -> list[str]:
        return export_folder(decoder, prepared.tokenizer, prepared.template, folder.model, rows)

    try:
        return export()
    except OSError as error:
        if error.errno not in FULL or not checkpoints.drop_older():
            raise
        screen.warn(f"  {folder.model}: {error.strerror}; older checkpoints are removed, and it is tried again")
    return export()


def _as_it_fits(prepared: Prepared, folder: RunFolder) -> Prepared:
    """With the micro-batches that an earlier process has found to fit into memory."""
    noted = folder.read_settings().get("micro_batches")
    if not noted:
        return prepared
    settings, rows = prepared.settings, int(noted[-1]["rows"])
    fits = min(rows, settings.train.micro_batch or rows)
    train = settings.train.model_copy(update={"micro_batch": fits})
    return replace(prepared, settings=settings.model_copy(update={"train": train}))


def _rescue(checkpoints: Checkpoints, work: Work) -> tuple[bool, str]:
    """Whether anything is kept of a training whose result cannot be saved, or which cannot go on; and what."""
    found = checkpoints.newest().state
    if found is None:
        return False, "There is no checkpoint, so --resume begins the training anew"
    done = found.progress.done
    planned = work.status.planned or found.progress.planned
    return True, f"The training is kept as it was after step {done:,} of {planned:,}: --resume goes on from there"


def _kept(saving: SavesCheckpoints, work: Work) -> str:
    """What there is of a training that was stopped."""
    at = f"after step {work.status.done:,} of {work.status.planned:,}"
    if saving.saved == work.status.done:
        return f"{at}, which is saved"
    if saving.saved is None:
        return f"{at}; it could not be saved"
    return f"{at}; it could not be saved, but step {saving.saved:,} is"


def _found(checkpoints: Checkpoints, screen: Screen) -> Found:
    """Where training goes on; without a state at its beginning. What is wrong with newer checkpoints is said."""
    found = checkpoints.newest()
    for line in found.damaged:
        screen.say(f"  left aside: {line}", "yellow")
    if found.state is None:
        screen.say("  there is no checkpoint to go on from, so training begins anew", "yellow")
    return found


def forget_checkpoints(folder: RunFolder, screen: Screen, *, keep: bool) -> None:
    """The run is finished, and needs them no more; ``keep`` leaves the newest for `instil.runs.extending`.

    What the run leaves is on disk before.
    """
    try:
        folder.sync()
        Checkpoints(folder.checkpoints).clear(keep=int(keep))
        if not keep:
            forget_kept(folder)
    except OSError as error:
        screen.say(f"  {folder.checkpoints}: what is in it is not needed, and cannot be removed: {error.strerror}")
