"""The whole job: pre-flight, baseline answers, training, answers, scores, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import raise_signal
from typing import Any

from instil.data.files.places import paths_of
from instil.errors import RunFolderTaken, StoppedEarly
from instil.evaluate.comparison import compare_verdicts
from instil.evaluate.offline import means, of_other_scripts
from instil.files import records_in
from instil.generate.answer import unended
from instil.machine import forget_peak, peak_gpu_memory_gb, peak_memory_gb
from instil.model.decoder import Decoder
from instil.model.fast.gemm import own_products, use_again
from instil.recipes.plan.clock import RunClock
from instil.recipes.plan.forecast import Forecast
from instil.recipes.run.crew import Crew
from instil.recipes.run.held_out import HeldOutAnswers
from instil.recipes.run.outside import OutsideOfRows
from instil.recipes.run.training import forget_checkpoints, train_and_save
from instil.runs.baseline import base_answers_key
from instil.runs.best import checkpoint_bytes, saved_bytes
from instil.runs.card import data_card
from instil.runs.extending import extend as extend_run
from instil.runs.facts import describe, keep_facts, unlike
from instil.runs.folder import RunFolder
from instil.runs.general import GeneralVerdict
from instil.runs.identity import Identity, check_same, clear_leftovers
from instil.runs.kept import Kept
from instil.runs.loggers.libraries import need_loggers
from instil.runs.report.report import refresh_report
from instil.runs.status import at_work, check_idle
from instil.runs.verdict import write_verdict
from instil.screen import Screen
from instil.settings.options import Settings
from instil.stopping import Stopped
from instil.tasks.prepare import load, prepare, task_of
from instil.tasks.rejected import rejected_rows
from instil.tasks.task import Data, Prepared, Task
from instil.train.observer import TrainResult
from instil.train.ranks import ALONE, Ranks
from instil.train.rewind import Skipped


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: where it lies and what came of it.

    ``scores`` holds the mean metrics over the held-out rows under ``base``, ``tuned`` and ``echo`` (the
    trivial baseline), and under ``base-in-NAME`` those of the form that scored less where the model was asked in two
    before training; it is empty for training alone or when there were no held-out rows. ``verdict`` says in one
    sentence whether the model got better, and ``note`` what must be known of the scores. ``general`` is what was lost
    and gained outside of its rows (`instil.runs.general`), where that was measured.
    """

    path: Path
    scores: dict[str, dict[str, float]]
    steps: int
    seconds: dict[str, float]
    validation_loss: float | None
    facts: dict[str, Any] = field(default_factory=dict)
    outlook: str = ""
    verdict: str = ""
    note: str = ""
    general: GeneralVerdict | None = None

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "run": str(self.path),
            "scores": self.scores,
            "verdict": self.verdict,
            **({"note": self.note} if self.note else {}),
            **({"general": self.general.as_json()} if self.general else {}),
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
    resume: bool = False,
    extend: bool = False,
    force: bool = False,
    answers: bool = True,
    before: Sequence[Path] = (),
    task: Task[Any] | None = None,
    screen: Screen | None = None,
    ranks: Ranks = ALONE,
) -> Run:
    """Tune a model on a file of rows and show what it learnt.

    Args:
        data: a name, a path, or the rows themselves (a list of dicts in Alpaca form).
        model: a name, a folder or a GGUF file.
        out: the run folder, which must be free.
        settings: see `instil.settings.options`.
        overwrite: replace an earlier run at ``out``.
        resume: go on with the run at ``out``, to the same end, where it was begun with the same data, model and
            settings; where none was begun, begin it.
        extend: with ``resume``, let it take more steps than it was begun for (``train.epochs``, ``train.max_steps``);
            also one that is finished, if it has kept a checkpoint (``train.keep_checkpoint``).
        force: with ``resume``, go on even if the loss of the next step is not what it was.
        answers: whether the held-out rows are answered and scored before and after.
        before: finished runs; of one that was asked the same, the answers before training are reused.
        task: what is to be learnt; by default what ``train.objective`` says, by which a run's rows are read again.
        screen: where progress is shown; stderr by default.
        ranks: the processes that work on it, of which this is the first; the others `instil.recipes.run.follow.follow`.

    Raises:
        UserError, RunFolderTaken: the input cannot be used, or ``out`` is not free; nothing was written.
        InstilError: the run that is to go on would not be the same.
        TrainingDiverged: the loss is no longer finite.
        Stopped: a signal came while it trained; see `instil.stopping`.
    """
    crew, clock, own_peak = Crew(ranks), RunClock(screen or Screen()), forget_peak()
    task = task or task_of(settings)
    how = _How(overwrite=overwrite, resume=resume, extend=extend, force=force, answers=answers, before=before)
    with crew.at_work():
        return _run(data, model, RunFolder(Path(out)), settings, task, how, clock, crew, own_peak=own_peak)


@dataclass(frozen=True, slots=True, kw_only=True)
class _How:
    """What `run` is asked for besides."""

    overwrite: bool
    resume: bool
    extend: bool
    force: bool
    answers: bool
    before: Sequence[Path]


def _run(
    data: Data,
    model: str | Path,
    folder: RunFolder,
    settings: Settings,
    task: Task[Any],
    how: _How,
    clock: RunClock,
    crew: Crew,
    *,
    own_peak: bool,
) -> Run:
    def look() -> Prepared:
        need_loggers(settings.log.to)
        check_idle(folder.path)
        if not resume:
            folder.check_free(overwrite=how.overwrite, inputs=_inputs(data, model, *task.inputs()))
            clear_leftovers(folder)
        return _preflight(data, model, settings, task, clock, answers=how.answers)

    # Chapters 7.2 to 7.4: rows, prompts and batches, looked at before anything is spent.
    resume = how.resume and folder.begun
    prepared = crew.start(look)
    answers = how.answers and bool(prepared.held_out[1])
    if resume:
        _check_resumed(folder, prepared, clock.screen, answers=answers, extend=how.extend)

    # 7.5: the pretrained model, a folder for the run, and the held-out rows answered as the model is.
    in_parts = crew.ranks.sharded  # no process ever has the whole model
    with clock.stage("load model"):
        decoder = load(prepared, elsewhere=in_parts)
    folder.check_room(saved_bytes(decoder, prepared.settings), checkpoint_bytes(decoder, prepared.settings))
    with at_work(folder.path, clock.screen) as work, own_products():
        facts = _begin(folder, prepared, decoder, clock.screen, overwrite=how.overwrite, resume=resume)
        crew.check_shared(folder)
        forecast = Forecast(prepared, clock.foresee, answers=answers)
        with Kept.of(folder, clock.screen, *crew.ranks.share) as journal:
            answered = HeldOutAnswers(folder, prepared, clock, journal, crew)
            measures = how.answers and settings.keep.measure
            outside = OutsideOfRows(folder, prepared, clock, journal, crew) if measures else None
            asks = answers or outside is not None

            def before(asked: Decoder) -> None:
                if answers:
                    answered.before(asked, forecast, facts["hashes"]["before"], how.before)
                if outside is not None:
                    form = answered.form.form if answered.form else ""
                    outside.before(asked, facts["hashes"]["model"], form, how.before)

            if asks:
                crew.ask(prepared, decoder, before)

            # 7.6: fine-tuning.
            again: dict[str, bool] = {"resume": resume, "force": how.force}
            result = train_and_save(prepared, decoder, folder, clock, forecast, work, journal, crew, **again)

            # 7.7 and 7.8: the held-out rows answered again, scored, and shown.
            general: list[GeneralVerdict] = []

            def after(asked: Decoder) -> None:
                if answers:
                    answered.after(asked)
                if outside is not None:
                    general.append(outside.after(asked))

            if asks:
                if in_parts:  # what was trained is saved, and is let go of
                    decoder = load(prepared, elsewhere=True)
                crew.ask(prepared, decoder, after, tuned=folder.model)
        clock.end()
        _keep_facts(folder, prepared, answered, result, clock, own_peak=own_peak)
        refresh_report(folder)
        if answered.verdicts:
            write_verdict(folder, answered.verdicts)
        work.finish()
        # Not before: an end that was not written down is gone on to again.
        forget_checkpoints(folder, clock.screen, keep=settings.train.keep_checkpoint)
    return _finished(folder, prepared, result, answered, facts, clock, general[0] if general else None)


def finetune(
    data: Data,
    *,
    model: str | Path = "smollm2-135m",
    out: str | Path,
    overwrite: bool = False,
    resume: bool = False,
    **settings: Any,
) -> Run:
    """Tune a model on a file of rows: `run` with settings as keywords.

    A setting is given by its bare name (``epochs=1``; ``train`` wins where two sections share a name)
    or in its section (``generate={"seed": 7}``).

    While it trains in the main thread, a signal that asks the process to stop (Ctrl-C, SIGTERM, SIGHUP) is taken after
    the step under way, which is saved; then it goes to whoever was to have it, so Ctrl-C ends in `KeyboardInterrupt`.
    The same call with ``resume=True`` goes on.

    Raises:
        UserError: data, model or settings cannot be used; nothing was written.
        StoppedEarly: a signal came, and whoever was to have it goes on.
    """
    from instil.settings.resolve import resolve

    try:
        return run(data, model, out, resolve(values=settings), overwrite=overwrite, resume=resume)
    except Stopped as stopped:
        raise_signal(stopped.number)
        raise StoppedEarly(
            f"stopped {stopped.kept}; the same call with resume=True goes on".replace("  ", " ")
        ) from stopped


def _inputs(*given: object) -> list[Path]:
    """The files and folders that a run reads."""
    return [path for name in given if isinstance(name, str | Path) and str(name) for path in paths_of(name)]


def _preflight(
    data: Data, model: str | Path, settings: Settings, task: Task[Any], clock: RunClock, *, answers: bool
) -> Prepared:
    """Prepare the run, and say all there is to say before it."""
    clock.screen.head("Pre-flight")
    with clock.stage("prepare"):
        prepared = prepare(data, model, settings, task, clock.screen)
    for line in prepared.preflight.few_lines():
        clock.screen.say(f"  {line}")
    if answers and not prepared.held_out[1]:
        why = "the rows ask nothing" if prepared.split.validation else "no rows are held out"
        clock.screen.say(f"  {why}, so nothing will be answered or scored", style="yellow")
    elif answers:
        part, rows = prepared.held_out
        of = len(prepared.split.test or prepared.split.validation)
        if len(rows) < of:
            clock.screen.say(
                f"  {len(rows):,} of {of:,} {part} rows will be answered and scored (generate.max_rows; 0 means all)"
            )
    return prepared


def _check_resumed(folder: RunFolder, prepared: Prepared, screen: Screen, *, answers: bool, extend: bool) -> None:
    """Make sure that the run in the folder is the one that is to go on."""
    try:
        if extend:
            for line in extend_run(folder, prepared, answers=answers):
                screen.say(f"  {line}", "yellow")
        else:
            check_same(folder, Identity.of(prepared), answers=answers)
    except RunFolderTaken:  # it is finished; what it needs no more may still lie there
        kept = folder.read_settings()["settings"].get("train", {}).get("keep_checkpoint")
        forget_checkpoints(folder, screen, keep=bool(kept) or prepared.settings.train.keep_checkpoint)
        raise


def _begin(
    folder: RunFolder, prepared: Prepared, decoder: Decoder, screen: Screen, *, overwrite: bool, resume: bool
) -> dict[str, Any]:
    """Make the run's folder and write down what is known of the run; returns what ``run.toml`` says.

    Of a run that goes on it stays as it is.
    """
    facts = describe(prepared, decoder)
    facts["hashes"]["before"] = base_answers_key(prepared, facts["hashes"]["model"])
    screen.say(f"  model: {prepared.model_name}, {decoder.parameter_count:,} parameters ({decoder.spec.family})")
    if resume:
        now, facts = facts["versions"], folder.read_settings()
        then = facts.get("versions", {})
        if products := then.get("products"):
            now["products"] = use_again(str(products))
        if others := unlike(then, now):
            screen.say(f"  {others} when it was begun, so last bits may differ from here on", "yellow")
    else:
        folder.create(overwrite=overwrite)
        folder.write_settings(facts)
    part, examples = prepared.held_out
    some = len(examples) < len(prepared.split.test or prepared.split.validation)
    numbers = [example.row for example in examples] if some else None
    folder.write_split(prepared.split.as_json(), prepared.leaks, part, numbers)
    rejected = list(rejected_rows(prepared))
    folder.write_data(data_card(prepared, rejected), [row.as_json() for row in rejected])
    return facts


def _keep_facts(
    folder: RunFolder,
    prepared: Prepared,
    answered: HeldOutAnswers,
    result: TrainResult,
    clock: RunClock,
    *,
    own_peak: bool,
) -> None:
    """``report.json``: what the report shows and no other file of the run holds."""
    limit = prepared.settings.generate.max_new_tokens
    keep_facts(
        folder,
        prepared.preflight,
        prepared.held_out[0],
        answered.examples if answered.answers else (),
        answered.answers,
        result,
        before_from=str(answered.reused or ""),
        before=asdict(answered.form) if answered.form else None,
        seconds=clock.seconds,
        peak_memory_gb=peak_memory_gb(),
        peak_gpu_memory_gb=peak_gpu_memory_gb(),
        own_peak=own_peak,
        outlook=clock.line(),
        leaks=prepared.leaks.as_json()["held_out"],
        micro_batches=folder.read_settings().get("micro_batches", []),
        skipped=[asdict(one) for one in records_in(folder.skipped, Skipped)] if folder.skipped.exists() else [],
        unended={which: unended(completions, limit) for which, completions in answered.answers.items()},
    )


def _finished(
    folder: RunFolder,
    prepared: Prepared,
    result: TrainResult,
    answered: HeldOutAnswers,
    facts: dict[str, Any],
    clock: RunClock,
    general: GeneralVerdict | None,
) -> Run:
    verdicts, form = answered.verdicts, answered.form
    order = [*filter(verdicts.__contains__, ("base", "echo", "tuned")), *([form.answers] if form else [])]
    return Run(
        path=folder.path,
        scores={which: means(verdicts[which]) for which in order},
        steps=result.steps,
        seconds=dict(clock.seconds),
        validation_loss=result.validation_loss,
        facts={
            "data": facts["data"],
            "model": facts["model"],
            "leaks": prepared.leaks.as_json(),
            "peak_memory_gb": round(peak_memory_gb(), 3),
            **({} if (peak_gpu := peak_gpu_memory_gb()) is None else {"peak_gpu_memory_gb": round(peak_gpu, 3)}),
            "estimate": clock.as_json(),
        },
        outlook=clock.line(),
        verdict=compare_verdicts(verdicts["base"], verdicts["tuned"]).sentence("before", "after") if verdicts else "",
        note=of_other_scripts(answered.examples) if verdicts else "",
        general=general,
    )
