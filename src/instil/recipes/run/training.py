"""The training of a run, and what it leaves in the run's folder."""

from __future__ import annotations

from instil.assistant.folder import export_folder
from instil.errors import InstilError
from instil.model.decoder import Decoder
from instil.recipes.plan.clock import RunClock
from instil.recipes.plan.forecast import Forecast
from instil.runs.best import BestOnDisk
from instil.runs.folder import RunFolder
from instil.runs.observers import MetricsFile, Samples, SavedAdapter
from instil.runs.report.curves import plot_losses
from instil.tasks.adapters import AdapterNote, MergeError
from instil.tasks.progress import progress
from instil.tasks.task import Prepared
from instil.tasks.tune import tune
from instil.train.observer import Observer, TrainResult

CHECKED_ROWS = 5  # whose ids are looked at again in what was saved


def train_and_save(
    prepared: Prepared, decoder: Decoder, folder: RunFolder, clock: RunClock, forecast: Forecast
) -> TrainResult:
    """Train and save the model, with metrics, samples, adapters and loss curves beside it."""
    screen, settings = clock.screen, prepared.settings
    screen.head("Training")
    with clock.stage("train"):
        prepared = prepared.task.ready(prepared, decoder, screen)
        with (
            MetricsFile(folder.metrics) as metrics,
            Samples(folder.samples, prepared, screen, forecast.saw_sample) as samples,
            progress(prepared, screen) as shown,
            BestOnDisk(folder.path / "checkpoints" / "best.safetensors") as best,
        ):
            observers: list[Observer] = [metrics, forecast, shown, *prepared.task.observers(screen), samples]
            if settings.train.method == "lora":
                observers += [AdapterNote(settings, decoder.parameter_count, screen), SavedAdapter(folder, prepared)]
            try:
                result = tune(prepared, decoder, observers, best)
            except MergeError as error:
                raise InstilError(f"{error}; they lie in {folder.adapter}") from error
        plot_losses(result.records, folder.path)
    with clock.stage("save"):
        rows = prepared.split.train[:CHECKED_ROWS]
        for line in export_folder(decoder, prepared.tokenizer, prepared.template, folder.model, rows):
            screen.say(f"  {line}", "yellow")
    return result
