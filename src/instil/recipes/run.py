"""The whole job: pre-flight, baseline answers, training, answers, scores, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instil.assistant.folder import export_folder
from instil.data.encoding import encode
from instil.data.near_duplicates import leak_line, leaked
from instil.errors import counted
from instil.evaluate.comparison import compare_verdicts
from instil.evaluate.likelihood import JUDGE as LIKELIHOOD
from instil.evaluate.likelihood import likelihoods
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.offline import means, score_offline, trivial_baseline
from instil.generate.answer import answer, unended
from instil.machine import forget_peak, peak_memory_gb
from instil.model.decoder import Decoder
from instil.recipes.plan.clock import Outlook, Stopwatch
from instil.recipes.plan.forecast import Forecast
from instil.records import Completion, Example, Verdict
from instil.runs.answers import AnsweredRows, read_verdicts, write_verdicts
from instil.runs.baseline import base_answers_key, copy_base_answers, reusable_run
from instil.runs.checkpoints import saved_bytes
from instil.runs.facts import describe, keep_facts
from instil.runs.folder import RunFolder
from instil.runs.report.report import refresh_report
from instil.screen import Screen, clock
from instil.settings.options import ScoreOptions, Settings
from instil.tasks.prepare import load, prepare
from instil.tasks.task import Data, Prepared
from instil.tasks.tune import tune
from instil.train.loop import TrainResult


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: where it lies and what came of it.

    ``scores`` holds the mean metrics over the held-out rows under ``base``, ``tuned`` and ``echo`` (the
    trivial baseline); it is empty for training alone or when there were no held-out rows. ``verdict`` says in one
    sentence whether the model got better.
    """

    path: Path
    scores: dict[str, dict[str, float]]
    steps: int
    seconds: dict[str, float]
    validation_loss: float | None
    facts: dict[str, Any] = field(default_factory=dict)
    outlook: str = ""
    verdict: str = ""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "run": str(self.path),
            "scores": self.scores,
            "verdict": self.verdict,
            "steps": self.steps,
            "validation_loss": self.validation_loss,
            "seconds": self.seconds,
            **self.facts,
        }


def run(
    data: Data,
    model: str | Path,
    out: str | Path,
    settings: Settings,
    *,
    overwrite: bool = False,
    answers: bool = True,
    before: Sequence[Path] = (),
    screen: Screen | None = None,
) -> Run:
    """Tune a model on a file of rows and show what it learnt.

    Args:
        data: a name, a path, or the rows themselves (a list of dicts in Alpaca form).
        model: a name, a folder or a GGUF file.
        out: the run folder, which must be free.
        settings: see `instil.settings.resolve`.
        overwrite: replace an earlier run at ``out``.
        answers: whether the held-out rows are answered and scored before and after.
        before: finished runs; one that was asked the same before training lends its answers (`recipes.before`).
        screen: where progress is shown; stderr by default.

    Raises:
        UserError: data, model or settings cannot be used; nothing was written.
        RunFolderTaken: ``out`` is not free.
        TrainingDiverged: the loss is no longer finite.
    """
    screen = screen or Screen()
    folder = RunFolder(Path(out))
    read = (data, model, settings.dpo.reference)
    inputs = [Path(given) for given in read if isinstance(given, str | Path) and str(given) and Path(given).exists()]
    folder.check_free(overwrite=overwrite, inputs=inputs)
    watch = Stopwatch()
    outlook = Outlook()
    own_peak = forget_peak()

    screen.head("Pre-flight")
    with watch.stage("prepare"):
        prepared = prepare(data, model, settings)
    for line in prepared.preflight.lines():
        screen.say(f"  {line}")
    part, examples = prepared.held_out
    if answers and not examples:
        screen.say("  no rows are held out, so nothing will be answered or scored", style="yellow")

    with watch.stage("load model"):
        decoder = load(prepared)
    facts = describe(prepared, decoder)
    facts["hashes"]["before"] = base_answers_key(prepared, facts["hashes"]["model"])
    screen.say(f"  model: {prepared.model_name}, {decoder.parameter_count:,} parameters ({decoder.spec.family})")
    folder.check_room(saved_bytes(decoder, settings))
    folder.create(overwrite=overwrite)
    folder.write_settings(facts)
    leaks = leaked(prepared.split.train, examples)
    folder.write_split(prepared.split.as_json(), leaks)
    if leaks:
        screen.say(f"  {leak_line(leaks, part)}", "yellow")
    answers = answers and bool(examples)

    def foresee(left: float) -> None:
        left += watch.seconds["load model"]  # what is saved is about what was loaded
        left += watch.seconds.get("likelihood before", 0.0)
        outlook.foresee(left)
        screen.say(f"  about {clock(left)} to go until the last answer, {clock(outlook.estimated)} in all")

    forecast = Forecast(prepared, foresee, answers=answers)

    said: dict[str, list[Completion]] = {}
    verdicts: dict[str, list[Verdict]] = {}
    lender = reusable_run(facts["hashes"]["before"], before) if answers else None
    if lender is not None:
        screen.head("Before")
        screen.say(f"  answered the same already; taken over from {lender}")
        said["base"] = copy_base_answers(lender, folder)
        verdicts["base"] = read_verdicts(lender / "scores" / "base.offline.jsonl")
        verdicts["echo"] = trivial_baseline(examples)
        screen.say(f"  {_score_line(means(verdicts['base']))}")
    elif answers:
        screen.head(f"Before: answering {counted(len(examples), f'{part} row')}")
        with watch.stage("answer before"):
            said["base"] = _answer(prepared, decoder, examples, screen)
        forecast.saw_answers(said["base"], settings.generate.batch_size, watch.seconds["answer before"])
        with watch.stage("likelihood before"):
            verdicts["base"] = _keep(folder, "base", prepared, decoder, examples, said["base"])
        verdicts["echo"] = trivial_baseline(examples)
        screen.say(f"  {_score_line(means(verdicts['base']))}")

    screen.head("Training")
    with watch.stage("train"):
        result = tune(prepared, decoder, folder, screen, forecast)
    with watch.stage("save"):
        export_folder(decoder, prepared.tokenizer, prepared.template, folder.model)

    if answers:
        screen.head(f"After: answering {counted(len(examples), f'{part} row')}")
        with watch.stage("answer after"):
            said["tuned"] = _answer(prepared, decoder, examples, screen)
        with watch.stage("likelihood after"):
            verdicts["tuned"] = _keep(folder, "tuned", prepared, decoder, examples, said["tuned"])
        screen.say(f"  {_score_line(means(verdicts['tuned']))}")

    outlook.end()
    keep_facts(
        folder,
        prepared.preflight,
        part,
        examples if answers else (),
        said,
        result,
        before_from=str(lender or ""),
        seconds=watch.seconds,
        peak_memory_gb=peak_memory_gb(),
        own_peak=own_peak,
        outlook=outlook.line(),
        unended={which: unended(found, prepared.settings.generate.max_new_tokens) for which, found in said.items()},
    )
    refresh_report(folder)
    return _finished(folder, result, watch, verdicts, facts, outlook)


def finetune(
    data: Data,
    *,
    model: str | Path = "smollm2-135m",
    out: str | Path,
    overwrite: bool = False,
    **settings: Any,
) -> Run:
    """Tune a model on a file of rows: `run` with settings as keywords.

    A setting is given by its bare name (``epochs=1``; ``train`` wins where two sections share a name)
    or in its section (``generate={"seed": 7}``).

    Raises:
        UserError: data, model or settings cannot be used; nothing was written.
    """
    from instil.settings.resolve import resolve

    return run(data, model, out, resolve(values=settings), overwrite=overwrite)


def _answer(prepared: Prepared, decoder: Decoder, examples: Sequence[Example], screen: Screen) -> list[Completion]:
    with screen.bar("answering", len(examples)) as advance:
        answers = answer(decoder, prepared.tokenizer, prepared.template, examples, prepared.settings.generate, advance)
    for line in unended(answers, prepared.settings.generate.max_new_tokens):
        screen.say(f"  {line}")
    return answers


def _keep(
    folder: RunFolder,
    which: str,
    prepared: Prepared,
    decoder: Decoder,
    examples: Sequence[Example],
    answers: Sequence[Completion],
) -> list[Verdict]:
    """Write down the answers, their agreement with the reference, and how likely the reference is."""
    folder.write_responses(which, examples, answers)
    texts = tuple(completion.text for completion in answers)
    answered = AnsweredRows(which, tuple(examples), texts, folder.path / "responses" / f"{which}.json", folder)
    verdicts = score_offline(examples, texts)
    write_verdicts(answered.verdicts_at(OFFLINE, ScoreOptions()), verdicts)
    rows = [encode(example, prepared.template, prepared.tokenizer) for example in examples]
    likely = likelihoods(decoder, rows, prepared.tokenizer.eos_id, prepared.max_length)
    write_verdicts(answered.verdicts_at(LIKELIHOOD, ScoreOptions()), likely)
    return verdicts


def _finished(
    folder: RunFolder,
    result: TrainResult,
    watch: Stopwatch,
    verdicts: dict[str, list[Verdict]],
    facts: dict[str, Any],
    outlook: Outlook,
) -> Run:
    return Run(
        path=folder.path,
        scores={which: means(found) for which, found in verdicts.items()},
        steps=result.steps,
        seconds=dict(watch.seconds),
        validation_loss=result.validation_loss,
        facts={
            "data": facts["data"],
            "model": facts["model"],
            "peak_memory_gb": round(peak_memory_gb(), 3),
            "estimate": outlook.as_json(),
        },
        outlook=outlook.line(),
        verdict=compare_verdicts(verdicts["base"], verdicts["tuned"]).sentence("before", "after") if verdicts else "",
    )


def _score_line(score: dict[str, float]) -> str:
    return (
        f"exact match {score['exact_match']:.1%}, chrF {score['chrf']:.1f}, agreement {score['score']:.1f} of 100 "
        "(with the reference)"
    )
