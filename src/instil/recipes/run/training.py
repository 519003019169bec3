"""The training of a run, and what it leaves in the run's folder."""

from __future__ import annotations

from signal import SIGTERM

from instil.assistant.folder import export_folder
from instil.errors import InstilError, TrainingStopped
from instil.model.decoder import Decoder
from instil.recipes.plan.clock import RunClock
from instil.recipes.plan.forecast import Forecast
from instil.runs.best import BestOnDisk
from instil.runs.checkpoints import Checkpoints
from instil.runs.folder import RunFolder
from instil.runs.identity import Identity
from instil.runs.observers import MetricsFile, Samples, SavedAdapter
from instil.runs.report.curves import plot_losses
from instil.runs.saving import SavesCheckpoints, StopsBySignal
from instil.runs.status import Work
from instil.screen import Screen
from instil.stopping import Stop, Stopped
from instil.tasks.adapters import AdapterNote, MergeError
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
    screen, settings = clock.screen, prepared.settings
    screen.head("Training")
    with clock.stage("train"):
        state = _found(checkpoints, screen) if resume else None
        prepared = prepared.task.ready(prepared, decoder, screen)
        with (
            MetricsFile(folder.metrics, resume=state is not None) as metrics,
            Samples(folder.samples, prepared, screen, forecast.saw_sample, resume=state is not None) as samples,
            progress(prepared, screen) as shown,
            BestOnDisk(folder.checkpoints / "best.safetensors") as best,
            Stop(quiet=screen.quiet) as stop,
        ):
            observers: list[Observer] = [work, metrics, forecast, shown, *prepared.task.observers(screen), samples]
            saving = SavesCheckpoints(checkpoints, settings.train.save_every, screen)
            observers += [saving, StopsBySignal(stop)]
            if settings.train.method == "lora":
                observers += [AdapterNote(settings, decoder.parameter_count, screen), SavedAdapter(folder, prepared)]
            try:
                result = tune(prepared, decoder, observers, best, state)
            except TrainingStopped as error:
                raise Stopped(stop.number or SIGTERM, _kept(saving, work)) from error
            except MergeError as error:
                raise InstilError(f"{error}; they lie in {folder.adapter}") from error
        plot_losses(result.records, folder.path)
    with clock.stage("save"):
        rows = prepared.split.train[:CHECKED_ROWS]
        for line in export_folder(decoder, prepared.tokenizer, prepared.template, folder.model, rows):
            screen.say(f"  {line}", "yellow")
    return result


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
