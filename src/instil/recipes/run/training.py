"""The training of a run, and what it leaves in the run's folder."""

from __future__ import annotations

from instil.assistant.folder import export_folder
from instil.errors import InstilError
from instil.model.decoder import Decoder
from instil.recipes.plan.clock import RunClock
from instil.recipes.plan.forecast import Forecast
from instil.runs.best import BestOnDisk
from instil.runs.checkpoints import Checkpoints, Found
from instil.runs.extending import extended, former
from instil.runs.facts import unlike, versions
from instil.runs.folder import RunFolder
from instil.runs.identity import Identity
from instil.runs.kept import Kept, forget_kept
from instil.runs.observers import MetricsFile, Samples, SavedAdapter
from instil.runs.proof import ProvesResume
from instil.runs.report.curves import plot_losses
from instil.runs.saving import SavesCheckpoints
from instil.screen import Screen
from instil.tasks.adapters import AdapterNote, MergeError
from instil.tasks.progress import progress
from instil.tasks.task import Prepared
from instil.tasks.tune import tune
from instil.train.loop import planned_steps
from instil.train.observer import Observer, TrainResult

CHECKED_ROWS = 5  # whose ids are looked at again in what was saved


def train_and_save(
    prepared: Prepared,
    decoder: Decoder,
    folder: RunFolder,
    clock: RunClock,
    forecast: Forecast,
    journal: Kept,
    *,
    resume: bool = False,
    force: bool = False,
) -> TrainResult:
    """Train and save the model, with metrics, samples, adapters and loss curves beside it.

    With ``resume`` it goes on from the newest checkpoint that is whole, if it goes on as it was (`ProvesResume`), or in
    any case with ``force``. Checkpoints stay until `forget_checkpoints`.
    """
    screen, settings, now = clock.screen, prepared.settings, versions(decoder.device)
    facts = folder.read_settings()
    checkpoints = Checkpoints(
        folder.checkpoints, Identity.of(prepared).short(), former=former(facts, prepared), versions=now
    )
    screen.head("Training")
    with clock.stage("train"):
        state, proof = None, ProvesResume(folder.metrics, screen, force=force)
        if resume:
            found = _found(checkpoints, screen)
            if found.state is not None:
                planned = planned_steps(len(prepared.training), settings.train)
                longer = found.state.progress.planned != planned
                state = extended(found.state, planned)
                elsewhere = unlike(found.versions or facts.get("versions", {}), now)
                left = None if longer else folder.metrics
                proof = ProvesResume(left, screen, elsewhere, force=force)
        prepared = prepared.task.ready(prepared, decoder, screen, journal=journal)
        with (
            MetricsFile(folder.metrics, resume=state is not None) as metrics,
            Samples(folder.samples, prepared, screen, forecast.saw_sample, resume=state is not None) as samples,
            progress(prepared, screen) as shown,
            BestOnDisk(folder.checkpoints / "best.safetensors") as best,
        ):
            watching = prepared.task.observers(screen)
            observers: list[Observer] = [*([proof] if state else []), metrics, forecast, shown, *watching, samples]
            first, keep = (metrics.sync, samples.sync), settings.train.keep_checkpoint
            observers.append(
                SavesCheckpoints(checkpoints, settings.train.save_every, screen, first=first, at_the_end=keep)
            )
            if settings.train.method == "lora":
                observers += [AdapterNote(settings, decoder.parameter_count, screen), SavedAdapter(folder, prepared)]
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
