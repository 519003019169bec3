"""Training a prepared run."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from instil.data.templates import TEMPLATE_FILE
from instil.generate.answer import answer
from instil.model.decoder import Decoder
from instil.runs.checkpoints import BestOnDisk
from instil.runs.folder import RunFolder
from instil.runs.report.curves import plot_losses
from instil.screen import Screen
from instil.settings.options import GenerateOptions
from instil.tasks.adapters import adapted
from instil.tasks.pairs.fading import Watch
from instil.tasks.pairs.reference import with_reference
from instil.train.evaluation import Evaluation, Evaluator
from instil.train.loop import TrainResult, planned_steps, train
from instil.train.metrics import MetricsFile, StepRecord

if TYPE_CHECKING:
    from instil.recipes.plan.forecast import Forecast
from instil.tasks.progress import _progress_line, _short
from instil.tasks.task import SAMPLE_TOKENS, Prepared, evaluator_for, loader_for, objective_for


@dataclass(frozen=True, slots=True)
class _Timed:
    """An evaluator that tells a forecast how long it took."""

    evaluator: Evaluator
    forecast: Forecast

    def __call__(self, decoder: Decoder) -> Evaluation:
        started = time.perf_counter()
        found = self.evaluator(decoder)
        self.forecast.saw_evaluation(time.perf_counter() - started)
        return found

    def due(self, done: int, ends_epoch: bool) -> bool:
        return self.evaluator.due(done, ends_epoch)


def tune(
    prepared: Prepared, decoder: Decoder, folder: RunFolder, screen: Screen, forecast: Forecast | None = None
) -> TrainResult:
    """Train, and leave ``metrics.jsonl``, ``samples.jsonl`` and the loss curves behind."""
    options = prepared.settings.train
    if prepared.pairs is not None:
        prepared = with_reference(prepared, decoder, screen, loader_for(prepared, "train"))
    loader = loader_for(prepared, "train")
    assert loader is not None, "pre-flight refuses data without a trainable row"
    if options.evaluation == "book":
        torch.manual_seed(options.seed)
    evaluator = evaluator_for(prepared, loader)
    if forecast is not None:
        evaluator = _Timed(evaluator, forecast)
    steps = planned_steps(len(loader), options)
    sampled = prepared.sampled
    records: list[StepRecord] = []
    watch = Watch()

    with (
        MetricsFile(folder.metrics) as metrics,
        folder.samples.open("w", encoding="utf-8") as samples,
        screen.bar("training", steps) as advance,
    ):

        def on_record(record: StepRecord) -> None:
            metrics.write(record)
            records.append(record)
            if record.step and forecast is not None:
                forecast.saw_step(record.seconds - records[-2].seconds)
            if record.step:
                advance(f"loss {record.train_loss:.3f}  {record.tokens_per_second:.0f} tokens/s")
            if record.val_loss is not None or record.step == steps:
                screen.say(_progress_line(records, steps))
            if warning := watch.saw(record):
                screen.say(f"  {warning}", "yellow")

        def on_sample(step: int) -> None:
            greedy = GenerateOptions(max_new_tokens=SAMPLE_TOKENS, header=prepared.settings.generate.header)
            started = time.perf_counter()
            answers = answer(decoder, prepared.tokenizer, prepared.template, sampled, greedy)
            if forecast is not None:
                forecast.saw_sample(answers, time.perf_counter() - started)
            for example, said in zip(sampled, answers, strict=True):
                line = {"step": step, "row": example.row, **example.as_json(), "model_response": said.text}
                samples.write(json.dumps(line, ensure_ascii=False) + "\n")
                samples.flush()
                if example is sampled[0]:
                    asked = " ".join(f"{example.instruction} {example.input}".split())
                    screen.say(f"    asked: {_short(asked)}\n    says:  {_short(' '.join(said.text.split()))}", "dim")

        tried = prepared.encoded["train"][0].ids[: prepared.max_length]
        kept = BestOnDisk(folder.path / "checkpoints" / "best.safetensors")
        with adapted(decoder, prepared.settings, folder.adapter, prepared.model_name, tried, screen), kept:
            result = train(
                decoder,
                loader,
                options,
                evaluator=evaluator,
                on_record=on_record,
                on_sample=on_sample if sampled else None,
                seen_ids=loader.ids(),
                keeper=kept,
                objective=objective_for(prepared),
            )
        if options.method == "lora":  # as in the model folder: it belongs to what was learnt
            folder.write_json(f"{folder.adapter.name}/{TEMPLATE_FILE}", prepared.template.as_json())
    if result.diverged:
        screen.say(f"  training diverged at {result.diverged}", "yellow")
    if result.best_step is not None:
        screen.say(f"  kept the model of step {result.best_step}, validation loss {result.validation_loss:.3f}")
    if warning := _worse(result):
        screen.say(f"  {warning}", "yellow")
    plot_losses(result.records, folder.path)
    return result


def _worse(result: TrainResult) -> str:
    """A warning where training has led away from the held-out rows; nothing otherwise."""
    before, after = result.records[0].val_loss, result.validation_loss
    if before is None or after is None or not after > before:
        return ""
    return f"the validation loss is {after:.3f}, above {before:.3f} before training; lower train.learning_rate"
