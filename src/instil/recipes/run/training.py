"""The training of a run, and what it leaves in the run's folder."""

from __future__ import annotations

from instil.assistant.folder import export_folder
from instil.errors import InstilError
from instil.model.decoder import Decoder
from instil.recipes.plan.clock import RunClock
from instil.recipes.plan.forecast import Forecast
from instil.runs.best import BestOnDisk
from instil.runs.checkpoints import Checkpoints
from instil.runs.folder import RunFolder
from instil.runs.identity import Identity
from instil.runs.loggers.observer import Logs
from instil.runs.observers import MetricsFile, Samples, SavedAdapter
from instil.runs.report.curves import plot_losses
from instil.runs.saving import SavesCheckpoints
from instil.runs.space import BEST
from instil.screen import Screen
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
    *,
    resume: bool = False,
) -> TrainResult:
    """Train and save the model, with metrics, samples, adapters and loss curves beside it.

    With ``resume`` it goes on from the newest checkpoint that is whole. Checkpoints stay until `forget_checkpoints`.
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
            BestOnDisk(folder.checkpoints / BEST) as best,
            Logs(settings.log, folder, screen) as logs,
        ):
            observers: list[Observer] = [metrics, forecast, shown, *prepared.task.observers(screen), samples]
            observers.append(SavesCheckpoints(checkpoints, settings.train.save_every, screen))
            if settings.train.method == "lora":
                observers += [AdapterNote(settings, decoder.parameter_count, screen), SavedAdapter(folder, prepared)]
            observers.append(logs)  # the last, since it may wait for others when training ends
            try:
                result = tune(prepared, decoder, observers, best, state)
            except MergeError as error:
                raise InstilError(f"{error}; they lie in {folder.adapter}") from error
        plot_losses(result.records, folder.path)
    with clock.stage("save"):
        rows = prepared.split.train[:CHECKED_ROWS]
        for line in export_folder(decoder, prepared.tokenizer, prepared.template, folder.model, rows):
            screen.say(f"  {line}", "yellow")
    return result


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
