"""The training of a run, and what it leaves in the run's folder."""

from __future__ import annotations

from dataclasses import replace
from signal import SIGTERM

from torch import Tensor

from instil.assistant.folder import export_folder
from instil.errors import InstilError, OutOfMemory, TrainingStopped
from instil.files import FULL
from instil.model.decoder import Decoder
from instil.recipes.plan.clock import RunClock
from instil.recipes.plan.forecast import Forecast
from instil.runs.best import BestOnDisk
from instil.runs.checkpoints import Checkpoints
from instil.runs.folder import RunFolder
from instil.runs.identity import Identity
from instil.runs.observers import MemoryNote, MetricsFile, Samples, SavedAdapter
from instil.runs.report.curves import plot_losses
from instil.runs.rewinding import EarlierOnDisk
from instil.runs.saving import SavesCheckpoints, StopsBySignal
from instil.runs.status import Work
from instil.screen import Screen
from instil.stopping import Stop, Stopped
from instil.tasks.adapters import AdapterNote, MergeError, adapt
from instil.tasks.prepare import load
from instil.tasks.progress import progress
from instil.tasks.task import Prepared
from instil.tasks.tune import tune
from instil.train.observer import Observer, TrainResult
from instil.train.state import TrainState

CHECKED_ROWS = 5  # whose ids are looked at again in what was saved


def train_and_save(
    prepared: Prepared,
    decoder: Decoder,
    folder: RunFolder,
    clock: RunClock,
    forecast: Forecast,
    work: Work,
    *,
    resume: bool = False,
) -> TrainResult:
    """Train and save the model, with metrics, samples, adapters and loss curves beside it.

    With ``resume`` it goes on from the newest checkpoint that is whole. Checkpoints stay until `forget_checkpoints`.

    Raises:
        Stopped: a signal came; where steps were taken, they are saved.
    """
    checkpoints = Checkpoints(folder.checkpoints, Identity.of(prepared).short())
    screen = clock.screen
    screen.head("Training")
    try:
        with BestOnDisk(folder.checkpoints / "best.safetensors", screen.warn) as best:
            with clock.stage("train"):
                result = _train(prepared, decoder, folder, checkpoints, best, clock, forecast, work, resume=resume)
            with clock.stage("save"):
                for line in _save(prepared, decoder, folder, checkpoints, screen):
                    screen.say(f"  {line}", "yellow")
                plot_losses(result.records, folder.path)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise InstilError(f"{where}{error.strerror or error}. {_rescue(checkpoints, work)}") from error
    except OutOfMemory as error:
        raise OutOfMemory(f"{error}. {_rescue(checkpoints, work)}") from error
    return result


def _train(
    prepared: Prepared,
    decoder: Decoder,
    folder: RunFolder,
    checkpoints: Checkpoints,
    best: BestOnDisk,
    clock: RunClock,
    forecast: Forecast,
    work: Work,
    *,
    resume: bool,
) -> TrainResult:
    screen, train = clock.screen, prepared.settings.train
    state = _found(checkpoints, screen) if resume else None
    prepared = prepared.task.ready(_as_it_fits(prepared, folder), decoder, screen)
    with (
        MetricsFile(folder.metrics, resume=state is not None, warn=screen.warn) as metrics,
        Samples(folder.samples, prepared, screen, forecast.saw_sample, resume=state is not None) as samples,
        progress(prepared, screen) as shown,
        Stop(quiet=screen.quiet) as stop,
    ):
        observers: list[Observer] = [work, metrics, forecast, shown, *prepared.task.observers(screen), samples]
        saving = SavesCheckpoints(checkpoints, train.save_every, screen)
        observers += [saving, StopsBySignal(stop), MemoryNote(folder, screen)]
        if train.method == "lora":
            observers += [
                AdapterNote(prepared.settings, decoder.parameter_count, screen),
                SavedAdapter(folder, prepared),
            ]
        earlier = EarlierOnDisk(checkpoints, folder.skipped, screen, lambda: _first(prepared))
        try:
            result = tune(prepared, decoder, observers, best, state, earlier)
        except TrainingStopped as error:
            raise Stopped(stop.number or SIGTERM, _kept(saving, work)) from error
        except MergeError as error:
            raise InstilError(f"{error}; they lie in {folder.adapter}") from error
    return result


def _first(prepared: Prepared) -> dict[str, Tensor]:
    """The weights that are trained as they are before training: those of the model, and fresh adapters."""
    decoder = load(prepared)
    if prepared.settings.train.method == "lora":
        adapt(decoder, prepared.settings)
    return {name: one.detach() for name, one in decoder.named_parameters() if one.requires_grad}


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


def _rescue(checkpoints: Checkpoints, work: Work) -> str:
    """What there is of a training whose result cannot be saved, or which cannot go on."""
    found = checkpoints.newest().state
    if found is None:
        return "There is no checkpoint, so training begins anew with the same command"
    done = found.progress.done
    return f"The training is kept as it was after step {done:,} of {work.status.planned:,}: --resume goes on from there"


def _kept(saving: SavesCheckpoints, work: Work) -> str:
    """What there is of a training that was stopped."""
    at = f"after step {work.status.done:,} of {work.status.planned:,}"
    if saving.saved == work.status.done:
        return f"{at}, which is saved"
    if saving.saved is None:
        return f"{at}; it could not be saved"
    return f"{at}; it could not be saved, but step {saving.saved:,} is"


def _found(checkpoints: Checkpoints, screen: Screen) -> TrainState | None:
    """Where training goes on; None for its beginning. What is wrong with newer checkpoints is said."""
    found = checkpoints.newest()
    for line in found.damaged:
        screen.say(f"  left aside: {line}", "yellow")
    if found.state is None:
        screen.say("  there is no checkpoint to go on from, so training begins anew", "yellow")
    return found.state


def forget_checkpoints(folder: RunFolder, screen: Screen) -> None:
    """The run is finished, and needs them no more."""
    try:
        Checkpoints(folder.checkpoints).clear()
    except OSError as error:
        screen.say(f"  {folder.checkpoints}: what is in it is not needed, and cannot be removed: {error.strerror}")
