"""What a run that goes on makes anew, and what it does not; where it refuses; and how a finished one is extended."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from instil.assistant import folder as model_folder
from instil.errors import InstilError, RunFolderTaken, SettingsError
from instil.evaluate import likelihood
from instil.evaluate.general import measure
from instil.files import unfinished_of
from instil.model.fast import gemm
from instil.recipes import probe as probe_module
from instil.recipes.probe import probe
from instil.recipes.run import crew, outside
from instil.recipes.run import run as job
from instil.recipes.run.run import Run, run
from instil.runs import best as best_module
from instil.runs import kept as kept_module
from instil.runs import proof as proof_module
from instil.runs.checkpoints import Checkpoints, Disk
from instil.runs.identity import Identity
from instil.runs.kept import NAME, Kept
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.tasks.pairs import reference
from instil.tasks.prepare import prepare
from instil.train import training
from instil.train.optimizer import AdamWInBackward
from instil.train.state import TrainState
from tests.conftest import rows
from tests.kills.left import left_by

pytestmark = pytest.mark.usefixtures("one_backend")

USUAL: dict[str, Any] = {
    "max_steps": 7, "eval_every": 3, "max_new_tokens": 3, "save_every": "2", "max_length": 128, "template": "plain",
    "micro_batch": 3,
}  # fmt: skip
PAIRS = [{**row, "chosen": row["output"], "rejected": "I do not know."} for row in rows(60)]


class Killed(BaseException):
    """The process is gone."""


class Told(Screen):
    """A screen that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str, style: str = "") -> None:
        self.lines.append(text)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Here:
    """Runs of one model at one place."""

    def __init__(self, model: Path, out: Path) -> None:
        self.model, self.out, self.screen = model, out, Told()

    def go(self, *, resume: bool = False, extend: bool = False, force: bool = False, **how: Any) -> Run:
        self.screen = Told()
        answers = how.pop("answers", False)
        data = PAIRS if how.get("objective") == "dpo" else rows(40)
        settings = resolve(values=USUAL | how)
        return run(
            data, self.model, self.out, settings, resume=resume, extend=extend, force=force, answers=answers,
            screen=self.screen,
        )  # fmt: skip

    def killed(self, where: Any, name: str, number: int, **how: Any) -> None:
        """Begin a run, and kill it when something is called for the so many-th time."""
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            dies(patch, where, name, number)
            self.go(**how)

    @property
    def checkpoints(self) -> list[str]:
        return sorted(one.name for one in (self.out / "checkpoints").glob("step-*"))


def dies(patch: pytest.MonkeyPatch, where: Any, name: str, number: int) -> None:
    """Die when this is called for the so many-th time."""
    call, called = getattr(where, name), 0

    def counted(*given: Any, **more: Any) -> Any:
        nonlocal called
        called += 1
        if called == number:
            raise Killed
        return call(*given, **more)

    patch.setattr(where, name, counted)


@pytest.fixture
def here(tinier: Path, tmp_path: Path) -> Here:
    return Here(tinier, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(tinier: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """What runs leave that were never killed."""
    made: dict[str, dict[str, Any]] = {}

    def of(**how: Any) -> dict[str, Any]:
        key = json.dumps(how, sort_keys=True)
        if key not in made:
            out = tmp_path_factory.mktemp("whole") / "run"
            Here(tinier, out).go(**how)
            made[key] = left_by(out)
        return made[key]

    return of


DPO = {"objective": "dpo", "method": "lora", "lora": {"rank": 2}, "max_steps": 10}
BORDERS: dict[str, tuple[Any, str, int, dict[str, Any]]] = {
    "first step": (training, "_step", 1, {}),
    "last step": (training, "_step", 7, {}),
    "end of an epoch": (training, "_step", 5, {"batch_size": 10, "micro_batch": 0, "save_every": "1"}),
    "after it": (training, "_step", 6, {"batch_size": 10, "micro_batch": 0, "save_every": "1"}),
    "middle of accumulation": (AdamWInBackward, "backward", 14, {}),
    "the best is being kept": (
        best_module, "write_safetensors", 3, {"patience": 9, "eval_every": 1, "learning_rate": 1e-3, "save_every": "1"},
    ),
    "a checkpoint is being written": (Disk, "write", 90, {}),
    "its folder takes its name": (Disk, "rename", 2, {}),
    "the last checkpoint is being written": (Disk, "rename", 4, {}),
    "the base is being measured": (measure, "measure_skill", 2, {"answers": True, "max_steps": 2}),
    "the tuned model is being measured": (measure, "measure_skill", 4, {"answers": True, "max_steps": 2}),
    "what was lost is being written": (outside, "write_general", 1, {"answers": True, "max_steps": 2}),
    "the model is being saved": (model_folder, "_write_chat_template", 1, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", BORDERS)
def test_a_run_that_is_killed_at_a_border(name: str, here: Here, whole: Callable[..., dict[str, Any]]) -> None:
    where, call, number, how = BORDERS[name]
    here.killed(where, call, number, **how)
    here.go(resume=True, **how)
    assert left_by(here.out) == whole(**how)


@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.0}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("form", ["before", "after"])
def test_only_answers_that_are_missing_are_made(
    form: str,
    sampled: dict[str, Any],
    here: Here,
    whole: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    how = {**sampled, "answers": True, "batch_size": 2, "generate": {"batch_size": 2, **sampled}, "max_steps": 2}
    del how["batch_size"]
    wanted = whole(**how)  # before anything is watched
    here.killed(kept_module.KeptAnswers, "keep_answer", 2 if form == "before" else 6, **how)
    answered: list[int] = []
    answer = crew.answer

    def seen(*given: Any, known: Any, **more: Any) -> Any:
        answered.append(len(given[3]) - len(known))
        return answer(*given, known=known, **more)

    monkeypatch.setattr(crew, "answer", seen)
    if form == "after":
        monkeypatch.setattr(training, "_step", lambda *_: pytest.fail("a step was taken twice"))
    here.go(resume=True, **how)
    assert answered == ([3, 4] if form == "before" else [0, 3])
    assert "1 of 4 rows were answered before it was stopped" in here.screen.text
    assert left_by(here.out) == wanted
    assert not list((here.out / "checkpoints").iterdir())


def test_likelihoods_are_looked_at_in_the_same_batches(
    here: Here, whole: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instil.evaluate.likelihood.ROWS", 3)
    monkeypatch.setattr("instil.data.together.TOKENS", 0)
    monkeypatch.setattr("instil.data.together.TIMES", 0)
    how = {"answers": True, "max_steps": 1, "measure": False}
    whole_run = Here(here.model, here.out.with_name("whole"))
    whole_run.go(**how)
    here.killed(kept_module.KeptAnswers, "keep_likelihood", 4, **how)
    looked: list[int] = []
    log_probs = likelihood.log_probs
    monkeypatch.setattr(likelihood, "log_probs", lambda *given: looked.append(1) or log_probs(*given))
    here.go(resume=True, **how)
    assert len(looked) == 1 + 2  # the second batch before, and both after
    assert left_by(here.out) == left_by(whole_run.out)


@pytest.mark.parametrize(("killed", "measured"), [(2, [1, 4]), (4, [0, 2])], ids=["before", "after"])
def test_only_parts_that_are_missing_are_measured(
    killed: int, measured: list[int], here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"answers": True, "max_steps": 2}
    here.killed(measure, "measure_skill", killed, **how)
    texts: list[int] = []
    skills: list[int] = []
    for name, called in (("measure_texts", texts), ("measure_skill", skills)):
        call = getattr(measure, name)
        monkeypatch.setattr(measure, name, lambda *given, call=call, called=called: called.append(1) or call(*given))
    here.go(resume=True, **how)
    assert [len(texts), len(skills)] == measured
    assert not (here.out / "checkpoints" / NAME).exists()


def test_the_reference_is_asked_about_the_rest_only(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instil.data.together.TOKENS", 0)
    monkeypatch.setattr("instil.data.together.TIMES", 0)
    whole_run = Here(here.model, here.out.with_name("whole"))
    whole_run.go(**DPO)
    here.killed(reference, "reference_log_probs", 3, **DPO)
    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        ask = reference.reference_log_probs
        patch.setattr(reference, "reference_log_probs", lambda *given: asked.append(1) or ask(*given))
        here.go(resume=True, **DPO)
        assert len(asked) == 3  # five batches in all: four of 51 pairs, one of those held out for validation
    assert left_by(here.out) == left_by(whole_run.out)


def test_what_is_damaged_in_the_journal_is_made_anew(here: Here, whole: Callable[..., dict[str, Any]]) -> None:
    how = {"answers": True, "max_steps": 2}
    here.killed(training, "_step", 1, **how)
    journal = here.out / "checkpoints" / NAME
    lines = journal.read_bytes().split(b"\n")
    at = next(number for number, line in enumerate(lines) if b'"text": "' in line)
    lines[at] = lines[at].replace(b'"text": "', b'"text": "?')
    journal.write_bytes(b"\n".join(lines[:-2]) + b"\n" + lines[-2][:9])  # and the last is torn
    here.go(resume=True, **how)
    assert "3 of 4 rows were answered before it was stopped" in here.screen.text
    assert left_by(here.out) == whole(**how)
    other = Here(here.model, here.out.with_name("other"))
    other.killed(training, "_step", 1, **how)
    (other.out / "checkpoints" / NAME).write_bytes(bytes(4096))
    other.go(resume=True, **how)
    assert "kept.journal is damaged; what it held is made anew" in other.screen.text
    assert left_by(other.out) == whole(**how)


def test_a_journal_that_cannot_be_written_ends_no_run(
    here: Here, whole: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"answers": True, "max_steps": 2}
    wanted = whole(**how)

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, *_: Any) -> None:
            raise OSError(28, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    enter = Kept.__enter__

    def full(self: Kept) -> Kept:
        found = enter(self)
        found._file = Full(found._file)
        return found

    monkeypatch.setattr(Kept, "__enter__", full)
    here.go(**how)
    assert here.screen.text.count("is not kept for --resume") == 1
    assert left_by(here.out) == wanted


def changed(here: Here, change: Callable[[TrainState], TrainState], **how: Any) -> None:
    """Put another state into the place of the newest one, with all its hashes as they should be."""
    prepared = prepare(rows(40), here.model, resolve(values=USUAL | how))
    old = Checkpoints(here.out / "checkpoints", Identity.of(prepared).short())
    found = old.newest()
    assert found.state is not None
    versions = found.versions
    Checkpoints(here.out / "checkpoints", old.identity, versions=versions).save(change(found.state.copied()))


def other_weights(state: TrainState) -> TrainState:
    name = next(name for name in state.tensors if name.startswith("weights/") and "norm" not in name)
    return replace(state, tensors={**state.tensors, name: state.tensors[name] + 0.01})


def other_moments(state: TrainState) -> TrainState:
    return replace(state, tensors={k: v + 1.0 if k.startswith("first/") else v for k, v in state.tensors.items()})


def other_place(state: TrainState) -> TrainState:
    return replace(state, progress=replace(state.progress, done=state.progress.done - 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_weights, r"taken up at step 4 of 7: the loss of its next step is \d\.\d+ and was \d\.\d+, on the same"),
        (other_place, r"taken up at step 3 of 7: the loss of its next step is \d\.\d+ and was \d\.\d+, on the same"),
        (other_moments, r"step 5 is not what it was before it was stopped: val_loss is \d\.\d+, and was \d\.\d+, on"),
    ],
    ids=["weights", "order of rows", "moments"],
)
def test_a_training_that_would_not_be_the_same_is_refused(
    change: Callable[[TrainState], TrainState], said: str, here: Here
) -> None:
    here.killed(training, "_step", 7, save_every="4")
    changed(here, change, save_every="4")
    with pytest.raises(InstilError, match=rf"{said}.*add --force to go on all the same") as refused:
        here.go(resume=True, save_every="4")
    assert refused.value.exit_code == 1
    here.go(resume=True, force=True, save_every="4") if change is not other_place else None


def test_on_another_machine_it_is_only_said(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.killed(training, "_step", 5)
    changed(here, other_weights)
    monkeypatch.setattr("instil.runs.facts.processor", lambda: "Another One")
    assert here.go(resume=True).steps == 7
    assert "taken up at step 4 of 7: the loss of its next step is" in here.screen.text
    assert "processor is Another One and was " in here.screen.text
    assert "so last bits may differ from here on" in here.screen.text


def test_a_run_says_that_it_is_where_it_was(here: Here) -> None:
    here.killed(training, "_step", 5)
    here.go(resume=True)
    assert "  taken up at step 4 of 7: the loss of its next step is as it was" in here.screen.lines
    at_the_end = Here(here.model, here.out.with_name("end"))
    at_the_end.killed(job, "_keep_facts", 1)
    at_the_end.go(resume=True)
    assert "  taken up at its end: the loss of its last step is as it was" in at_the_end.screen.lines


def test_the_steps_after_its_checkpoint_are_compared(here: Here) -> None:
    """Those lines are there in the file; a line that says something else is noticed, so they are looked at."""
    here.killed(training, "_step", 5, save_every="3")
    lines = (here.out / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[4])
    assert record["step"] == 4
    record["train_loss"] += 1e-6
    (here.out / "metrics.jsonl").write_text("\n".join([*lines[:4], json.dumps(record)]) + "\n")
    with pytest.raises(InstilError, match=r"step 4 is not what it was .*: train_loss is"):
        here.go(resume=True, save_every="3")


def test_samples_that_are_damaged_are_told_of(here: Here, whole: Callable[..., dict[str, Any]]) -> None:
    """They are in no checkpoint, so they are lost; the last line may be torn, and is made again."""
    how = {"sample": "evaluation"}
    here.killed(training, "_step", 6, **how)
    file, wanted = here.out / "samples.jsonl", whole(**how)["samples.jsonl"].splitlines()
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([b"\xff" * 9, lines[1], b'{"step": 1e999}', *lines[3:], b'{"step": 5']))
    here.go(resume=True, **how)
    assert f"  {file}: 2 lines are damaged and left out; what they had of earlier samples is lost" in here.screen.lines
    assert file.read_bytes().splitlines() == [wanted[1], *wanted[3:]]


def test_killed_before_its_first_file(here: Here, whole: Callable[..., dict[str, Any]]) -> None:
    here.killed(job.RunFolder, "write_settings", 1)
    unfinished_of(here.out / "run.toml").write_text("instil = ")
    here.go(resume=True)
    assert left_by(here.out) == whole()
    again = Here(here.model, here.out.with_name("again"))
    again.killed(job.RunFolder, "write_settings", 1)
    again.go()  # nothing was there yet, so that nothing can be lost


@pytest.mark.parametrize("step", ["refresh_report", "forget_checkpoints"])
def test_killed_at_its_very_end(step: str, here: Here, whole: Callable[..., dict[str, Any]]) -> None:
    here.killed(job, step, 1)
    assert (here.out / "report.json").exists()
    if step == "refresh_report":
        here.go(resume=True)
    else:
        with pytest.raises(RunFolderTaken, match="is finished, so there is nothing to go on with"):
            here.go(resume=True)
    assert left_by(here.out) == whole()
    assert here.checkpoints == []


def test_killed_while_it_is_taken_up(here: Here, whole: Callable[..., dict[str, Any]]) -> None:
    """What the files have of earlier steps is not lost with those of later ones."""
    here.killed(training, "_step", 6)
    here.killed(training, "set_random_states", 3, resume=True)
    here.killed(proof_module.ProvesResume, "on_resume", 1, resume=True)
    here.go(resume=True)
    assert left_by(here.out) == whole()


STEADY = {"schedule": "constant", "keep_checkpoint": True}


def test_a_finished_run_is_extended(here: Here, whole: Callable[..., dict[str, Any]]) -> None:
    """With a steady rate, to the very run that it would have been."""
    here.go(answers=True, **STEADY)
    with pytest.raises(RunFolderTaken, match="is finished"):  # without saying once more that it is to be kept
        here.go(resume=True, answers=True, schedule="constant")
    assert here.checkpoints == ["step-000000007"]
    with pytest.raises(
        RunFolderTaken, match=r"is finished.*; to extend it, set a larger train\.epochs or train\.max_st"
    ):
        here.go(resume=True, extend=True, answers=True, **STEADY)
    with pytest.raises(SettingsError, match=r"max_steps is 7, now 10\..*; --extend lets it go on for longer"):
        here.go(resume=True, answers=True, **STEADY, max_steps=10)
    with pytest.raises(SettingsError, match=r"it was begun for 7, and train\.epochs and .* as given make 5 steps"):
        here.go(resume=True, extend=True, answers=True, **STEADY, max_steps=5)
    with pytest.raises(SettingsError, match=r"another run, .*learning_rate"):
        here.go(resume=True, extend=True, answers=True, **STEADY, max_steps=10, learning_rate=0.5)
    taken = 0
    with pytest.MonkeyPatch.context() as patch:
        step = training._step

        def counted(*given: Any) -> Any:
            nonlocal taken
            taken += 1
            return step(*given)

        patch.setattr(training, "_step", counted)
        found = here.go(resume=True, extend=True, answers=True, **STEADY, max_steps=10)
    assert (found.steps, taken) == (10, 3)
    assert "  extended from 7 to 10 steps" in here.screen.lines
    facts = tomllib.loads((here.out / "run.toml").read_text())
    assert facts["settings"]["train"]["max_steps"] == 10
    assert facts["extended"] == [{"epochs": 4, "max_steps": 7, "steps": 7, "after": 7}]
    wanted = whole(answers=True, **STEADY, max_steps=10)
    for name in (
        "model/model.safetensors",
        "responses/base.json",
        "responses/tuned.json",
        "scores/tuned.offline.jsonl",
    ):
        assert left_by(here.out)[name] == wanted[name], name


def test_an_extension_that_is_killed_goes_on(here: Here) -> None:
    here.killed(training, "_step", 6, **STEADY)
    here.killed(training, "_step", 1, **STEADY, resume=True, extend=True, max_steps=10)
    assert "(--force)" not in here.screen.text  # steps that had other rates are not compared
    here.killed(training, "_step", 3, **STEADY, resume=True, max_steps=10)
    here.go(**STEADY, resume=True, extend=True, max_steps=12)  # and once more
    facts = tomllib.loads((here.out / "run.toml").read_text())
    assert [(one["steps"], one["after"]) for one in facts["extended"]] == [(7, 4), (10, 6)]
    whole = Here(here.model, here.out.with_name("whole"))
    whole.go(**STEADY, max_steps=12)
    name = "model/model.safetensors"
    assert left_by(here.out)[name] == left_by(whole.out)[name]


def test_what_an_extension_does_to_a_schedule_is_said(here: Here) -> None:
    here.go(keep_checkpoint=True)
    here.go(keep_checkpoint=True, resume=True, extend=True, max_steps=0, epochs=2)
    said = r"the schedule (cosine) spans all 10 steps from here on: the last step had 4.95e-06, the next has 2.06e-05"
    assert said in here.screen.text


def test_what_cannot_be_extended_is_refused(here: Here) -> None:
    here.go()
    with pytest.raises(SettingsError, match=r"no checkpoint to extend it from: there is none .*keep_checkpoint=true"):
        here.go(resume=True, extend=True, max_steps=10)
    patient = Here(here.model, here.out.with_name("patient"))
    how = {"patience": 1, "eval_every": 1, "learning_rate": 30.0, "keep_checkpoint": True, "clip": 1.0}
    patient.go(**how)
    with pytest.raises(SettingsError, match=r"train\.patience ended it after step"):
        patient.go(**how, resume=True, extend=True, max_steps=10)
    assert (patient.out / "report.json").exists()


def test_weights_have_a_hash_of_their_own() -> None:
    from tests.train.test_training import decoder

    one, other = decoder("gpt2"), decoder("gpt2")
    assert kept_module.weights_hash(one) == kept_module.weights_hash(other)
    with torch.no_grad():
        next(other.parameters()).view(-1)[3] += 1e-9
    assert kept_module.weights_hash(one) != kept_module.weights_hash(other)


def test_a_probe_goes_on(tinier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = resolve(values={"template": "plain", "max_length": 128})

    def probed(out: Path | None, **how: Any) -> Any:
        found = probe(rows(40), tinier, settings, rates=[1e-5, 1e-4, 1e-3], steps=2, out=out, screen=Told(), **how)
        return replace(found, seconds=0.0)

    wanted = probed(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dies(patch, probe_module, "train", 3)
        probed(tmp_path / "probe")
    taken: list[int] = []
    train = probe_module.train
    monkeypatch.setattr(
        probe_module, "train", lambda *given, **more: taken.append(given[2].max_steps) or train(*given, **more)
    )
    assert probed(tmp_path / "probe", resume=True) == wanted
    assert taken == [2, 4, 4]
    monkeypatch.setattr(gemm, "_before", "")
    assert probed(tmp_path / "probe", resume=True) == wanted
    assert gemm._before == ""  # how it multiplied is that run's alone
    assert taken == [2, 4, 4]
    assert probed(tmp_path / "probe") == wanted  # anew
    assert len(taken) == 3 + 5
    with pytest.raises(SettingsError, match="--resume goes on with what lies in the folder of --out"):
        probed(None, resume=True)
