"""A sweep on a tiny model: its table is that of its runs, it goes on where it stopped, and nothing is lost."""

from __future__ import annotations

import csv
import errno
import gc
import json
import resource
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from matplotlib.figure import Figure

import instil
from instil.errors import DataError, InstilError, RunFolderTaken, SettingsError, StoppedEarly, UserError
from instil.evaluate.comparison import compare_verdicts
from instil.evaluate.statistics import interval
from instil.machine import release
from instil.model.decoder import Decoder
from instil.recipes.run import crew as run_module
from instil.recipes.sweep import rows as sweep_rows
from instil.recipes.sweep import sweep as sweep_module
from instil.recipes.sweep.file import Overrides
from instil.recipes.sweep.process import run_apart
from instil.recipes.sweep.sweep import SweepResult, sweep
from instil.runs import baseline as before_module
from instil.runs.answers import read_verdicts
from instil.runs.folder import RunFolder
from instil.runs.report.report import refresh_report
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.train.metrics import read_metrics
from tests.conftest import rows, stands_for_a_picture
from tests.faults.judge_server import judging

RUNS = """
[settings]
train.max_steps = 3
train.learning_rate = 3e-3
train.eval_every = 2
generate.max_new_tokens = 3
[[run]]
name = "first"
[[run]]
name = "other prompt"
settings.data.template = "phi3"
[[run]]
name = "thin"
settings.train.method = "lora"
settings.lora.rank = 2
"""
FAILS = '[[run]]\nname = "wild"\nsettings.train.learning_rate = 1e30\n'
PROC = r"^/proc/x(/only)?: the folder cannot be made: .*; choose another --out$"


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
    """A place for sweeps with a tiny model and forty rows."""

    def __init__(self, folder: Path, model: Path, text: str = RUNS) -> None:
        self.file, self.data, self.out = folder / "some.toml", folder / "rows.json", folder / "out"
        self.file.write_text(text)
        self.data.write_text(json.dumps(rows(40)))
        self.model = model
        self.screen = Told()

    def go(self, *assignments: str, judge: str | None = None, **options: Any) -> SweepResult:
        self.screen = Told()
        over = Overrides(str(self.data), str(self.model), self.out, judge, assignments)
        return sweep(self.file, over, screen=self.screen, **options)


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Here, SweepResult, list[int]]:
    """A finished sweep, and how many rows each answering before and after training was about."""
    here = Here(tmp_path_factory.mktemp("sweep"), tiny_folder)
    answered: list[int] = []
    answer = run_module.answer

    def counted(decoder: Any, tokenizer: Any, template: Any, examples: Any, *more: Any, **how: Any) -> Any:
        answered.append(len(examples))
        return answer(decoder, tokenizer, template, examples, *more, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "answer", counted)
        return here, here.go(), answered


@pytest.fixture
def copied(
    made: tuple[Here, SweepResult, list[int]], tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Here:
    """That sweep to be damaged; where the base answers came from is in another folder, which does not matter.

    Its pictures are looked at where it is made, and are not drawn again.
    """
    monkeypatch.setattr(Figure, "savefig", stands_for_a_picture)
    shutil.copytree(made[0].out, tmp_path / "out")
    return Here(tmp_path, tiny_folder)


def test_answers_before_training_are_made_once_for_all_that_ask_the_same(
    made: tuple[Here, SweepResult, list[int]],
) -> None:
    here, done, answered = made
    assert answered == [4, 4, 4, 4, 4]  # before and after; before and after with the other template; after
    first, other, thin = done.table.rows
    assert (first.before_from, other.before_from, thin.before_from) == ("", "", first.folder)
    for name in ("responses/base.json", "scores/base.offline.jsonl", "scores/base.likelihood.jsonl"):
        assert (Path(first.folder) / name).read_bytes() == (Path(thin.folder) / name).read_bytes()
    facts = json.loads((Path(thin.folder) / "report.json").read_text())
    assert facts["finish"]["base"] == json.loads((Path(first.folder) / "report.json").read_text())["finish"]["base"]
    assert "taken over from" in here.screen.text
    assert "thin took over the answers before training" in "\n".join(done.table.notes())


def test_a_run_of_a_sweep_is_the_ordinary_run(
    made: tuple[Here, SweepResult, list[int]], tiny_folder: Path, tmp_path: Path
) -> None:
    here, done, _ = made
    alone = instil.finetune(
        here.data, model=tiny_folder, out=tmp_path / "alone", max_steps=3, learning_rate=3e-3, eval_every=2,
        max_new_tokens=3, method="lora", rank=2,
    )  # fmt: skip
    thin = Path(done.table.rows[2].folder)
    for name in ("responses/base.json", "responses/tuned.json", "scores/base.likelihood.jsonl", "split.json"):
        assert (thin / name).read_bytes() == (alone.path / name).read_bytes(), name
    losses = [[one.train_loss for one in read_metrics(run / "metrics.jsonl")] for run in (thin, alone.path)]
    assert losses[0] == losses[1]
    assert {file.name for file in thin.iterdir()} == {file.name for file in alone.path.iterdir()}


def test_the_table_is_that_of_the_runs(made: tuple[Here, SweepResult, list[int]]) -> None:
    _, done, _ = made
    first = read_verdicts(Path(done.table.rows[0].folder) / "scores" / "tuned.offline.jsonl")
    for row in done.table.rows:
        run = Path(row.folder)
        report = json.loads((run / "report.json").read_text())
        records = read_metrics(run / "metrics.jsonl")
        tuned, base = (read_verdicts(run / "scores" / f"{which}.offline.jsonl") for which in ("tuned", "base"))
        assert row.steps == 3
        assert row.train_seconds == report["train_seconds"]
        assert row.seconds == pytest.approx(sum(report["seconds"].values()))
        assert row.peak_memory_gb == report["peak_memory_gb"]
        assert row.validation_loss == records[-1].val_loss
        assert row.train_loss == pytest.approx(sum(one.train_loss or 0 for one in records[1:]) / 3)
        assert row.after == interval([one.score for one in tuned if one.score is not None])
        assert row.before == interval([one.score for one in base if one.score is not None])
        assert row.exact_match == interval([100 * one.metrics["exact_match"] for one in tuned])
        if row.name != "first":
            assert row.against == compare_verdicts(first, tuned)
    facts = tomllib.loads((Path(done.table.rows[0].folder) / "run.toml").read_text())
    assert done.table.rows[0].trained == facts["model_facts"]["parameters"]
    assert 0 < (done.table.rows[2].trained or 0) < 10_000


def test_all_its_files_say_the_same(made: tuple[Here, SweepResult, list[int]]) -> None:
    here, done, _ = made
    stored = json.loads((here.out / "sweep.json").read_text())
    assert stored == done.table.as_json() == {key: value for key, value in done.as_json().items() if key != "out"}
    lines = list(csv.DictReader((here.out / "sweep.csv").read_text().splitlines()))
    assert [line["name"] for line in lines] == ["first", "other prompt", "thin"]
    for line, run in zip(lines, stored["runs"], strict=True):
        assert float(line["validation_loss"]) == run["validation_loss"]
        assert float(line["after_low"]) == run["after"]["low"]
    assert (here.out / "sweep.md").read_text() == done.table.as_markdown()
    page = (here.out / "sweep.html").read_text()
    assert 'href="other-prompt/report.html"' in page
    assert "http" not in page.replace("http-equiv", "")
    assert (here.out / "loss.png").stat().st_size > 1000


def test_losses_of_something_else_are_not_compared(made: tuple[Here, SweepResult, list[int]]) -> None:
    notes = "\n".join(made[1].table.notes())
    assert "The validation losses of other prompt and first are not comparable: different template." in notes
    assert "of thin and first" not in notes


def test_finished_runs_are_kept(copied: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "run", None)
    stamps = {file: file.stat().st_mtime_ns for file in copied.out.glob("*/**/*")}
    done = copied.go()
    assert [row.status for row in done.table.rows] == ["kept"] * 3
    assert copied.screen.text.count("is finished already") == 3
    assert {file: file.stat().st_mtime_ns for file in copied.out.glob("*/**/*")} == stamps
    copied.go("score.min_coverage=0.5")  # how answers are judged makes no other run


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
    "lost", ["report.json", pytest.param("responses/tuned.json", marks=SLOW), pytest.param("model", marks=SLOW)]
)
def test_a_run_that_is_not_whole_is_done_again(lost: str, copied: Here) -> None:
    target = copied.out / "thin" / lost
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    before = (copied.out / "thin" / "metrics.jsonl").stat().st_mtime_ns
    done = copied.go()
    assert [row.status for row in done.table.rows] == ["kept", "kept", "done"]
    assert target.exists()
    assert (copied.out / "thin" / "metrics.jsonl").stat().st_mtime_ns > before
    assert done.table.rows[2].before_from == str(copied.out / "first")


@pytest.mark.slow
@pytest.mark.parametrize("spoilt", [pytest.param("metrics.jsonl", marks=SLOW), "model/model.safetensors"])
def test_a_run_with_nothing_in_its_files_is_done_again(spoilt: str, copied: Here) -> None:
    (copied.out / "thin" / spoilt).write_text("x" if spoilt.startswith("model") else "")
    done = copied.go()
    assert [row.status for row in done.table.rows] == ["kept", "kept", "done"]
    assert (copied.out / "thin" / spoilt).stat().st_size > 100


def test_an_error_of_any_kind_does_not_lose_the_others(copied: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries raise what they like."""
    shutil.rmtree(copied.out / "first")

    def broken(*args: object, **options: object) -> None:
        raise Exception("File too large (os error 27)")  # as tokenizers does

    monkeypatch.setattr(sweep_module, "run", broken)
    done = copied.go()
    assert [row.status for row in done.table.rows] == ["failed", "kept", "kept"]
    assert "File too large" in done.table.rows[0].reason


@pytest.mark.slow
def test_a_run_killed_before_its_first_file_is_done_again(copied: Here) -> None:
    shutil.rmtree(copied.out / "thin")
    for name in ("responses", "scores", "checkpoints"):
        (copied.out / "thin" / name).mkdir(parents=True)
    assert [row.status for row in copied.go().table.rows] == ["kept", "kept", "done"]


def test_another_finished_run_is_not_replaced_unasked(copied: Here) -> None:
    with pytest.raises(RunFolderTaken, match=r"train\.epochs is 4, now 7.*--overwrite"):
        copied.go("train.epochs=7")
    copied.data.write_text(json.dumps(rows(41)))
    with pytest.raises(RunFolderTaken, match="another data"):
        copied.go()
    copied.file.write_text(RUNS.split('[[run]]\nname = "other', maxsplit=1)[0])
    assert [row.status for row in copied.go(overwrite=True).table.rows] == ["done"]
    assert [row.status for row in copied.go(overwrite=True).table.rows] == ["kept"]


def test_what_is_no_run_is_left_alone(copied: Here) -> None:
    shutil.rmtree(copied.out / "thin")
    (copied.out / "thin").mkdir()
    (copied.out / "thin" / "letter.txt").write_text("dear")
    with pytest.raises(InstilError, match="it is not a run, so it is left alone"):
        copied.go(overwrite=True)
    assert (copied.out / "thin" / "letter.txt").read_text() == "dear"


def test_answers_of_a_damaged_run_are_not_borrowed(copied: Here) -> None:
    shutil.rmtree(copied.out / "thin")
    (copied.out / "first" / "scores" / "base.likelihood.jsonl").write_text("{}\n")
    asked = tomllib.loads((copied.out / "first" / "run.toml").read_text())["hashes"]["before"]
    assert before_module.reusable_run(asked, [copied.out / "first"]) is None
    assert before_module.reusable_run(asked, [copied.out / "other-prompt"]) is None
    whole = tomllib.loads((copied.out / "other-prompt" / "run.toml").read_text())["hashes"]["before"]
    assert whole != asked
    candidates = [copied.out / "none", copied.out / "first", copied.out / "other-prompt"]
    assert before_module.reusable_run(whole, candidates) == copied.out / "other-prompt"


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("scores/tuned.offline.jsonl", lambda text: text.split("\n")[0], "its verdicts are not those of the 4 answers"),
        ("scores/base.offline.jsonl", lambda text: text.split("\n")[0], "its verdicts are not those of the 4 answers"),
        ("scores/tuned.offline.jsonl", lambda text: text.replace("exact_match", "exact"), "no 'exact_match' among its"),
        ("metrics.jsonl", lambda text: text[:20], "line 1: Expecting"),
        ("metrics.jsonl", lambda text: f"{text}[3]\n", "found a list; wanted an object"),
        ("metrics.jsonl", lambda text: text.replace('"step": 2', '"step": "2"'), "'step' is a string; wanted a whole"),
        ("report.json", lambda text: text.replace('"train_seconds": ', '"train_seconds": "x", "other": '), "a string"),
        ("report.json", lambda text: "[]", "found a list; wanted an object"),
        ("run.toml", lambda text: text.replace("\nmodel = ", "\nmodels = ", 1), "it has no 'model'"),
    ],
)
def test_a_damaged_run_is_named_and_does_not_lose_the_others(
    name: str, damage: Callable[[str], str], says: str, copied: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "run", None)
    file = copied.out / "other-prompt" / name
    file.write_text(damage(file.read_text()))
    done = copied.go()
    assert [row.status for row in done.table.rows] == ["kept", "failed", "kept"]
    assert done.table.rows[1].reason.startswith(f"{file}: damaged")
    assert says in done.table.rows[1].reason
    assert "Error" not in done.table.rows[1].reason
    assert f"remove {file.parents[len(Path(name).parts) - 1]} to have the run made anew" in done.table.rows[1].reason


def test_a_run_of_an_earlier_version_has_its_row_and_its_report(copied: Here) -> None:
    """Its facts lack what is kept since."""
    folder = RunFolder(copied.out / "thin")
    file = folder.path / "report.json"
    facts = json.loads(file.read_text())
    for key in ("diverged", "best_step", "trained_parameters", "validation_loss", "before_from", "own_peak"):
        del facts[key]
    file.write_text(json.dumps(facts))
    folder.report.unlink()
    refresh_report(folder)
    assert "diverged" not in folder.report.read_text()
    row = sweep_rows.row_of("thin", folder, "kept", {})
    assert (row.steps, row.trained, row.validation_loss, row.own_peak) == (3, None, None, False)


@pytest.mark.slow
def test_a_failing_run_does_not_lose_the_others(tmp_path: Path, tiny_folder: Path) -> None:
    head, first, *_ = RUNS.split("[[run]]")
    here = Here(tmp_path, tiny_folder, head + FAILS + "[[run]]" + first)
    alive: list[int] = []

    def released() -> None:
        release()
        alive.append(sum(type(one) is Decoder for one in gc.get_objects()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_module, "release", released)
        already = sum(type(one) is Decoder for one in gc.get_objects())
        done = here.go("generate.max_new_tokens=2")
    assert alive == [already] * 2, "the model of a run is gone before the next one is loaded"
    wild, fine = done.table.rows
    assert (wild.status, fine.status) == ("failed", "done")
    assert "Lower train.learning_rate" in wild.reason
    assert fine.against is None
    assert "wild is not finished, so nothing could be compared with it." in done.table.notes()
    assert "1 of 2 runs" in (here.out / "sweep.html").read_text()
    with pytest.raises(InstilError, match=r"^1 of 2 runs failed\. wild: ") as raised:
        done.check()
    assert raised.value.exit_code == 1
    assert [row.status for row in here.go("generate.max_new_tokens=2").table.rows] == ["failed", "kept"]


def test_runs_that_are_stopped_and_can_go_on_do_not_fail_a_sweep(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But one that has failed does, whatever became of the others."""
    here = Here(tmp_path, tiny_folder, RUNS)
    problems: list[InstilError] = [StoppedEarly("no room"), StoppedEarly("no room"), InstilError("it is broken")]

    def stops(data: str, model: str, out: Path, **how: Any) -> None:
        raise problems[["first", "other-prompt", "thin"].index(out.name)]

    monkeypatch.setattr(sweep_module, "run", stops)
    with pytest.raises(InstilError, match=r"^3 of 3 runs failed\. first: no room; other prompt: ") as failed:
        here.go().check()
    problems[2] = StoppedEarly("no room")
    with pytest.raises(StoppedEarly, match=r"^3 of 3 runs failed\. first: no room; other prompt: ") as stopped:
        here.go().check()
    assert (failed.value.exit_code, stopped.value.exit_code) == (1, 4)


def test_a_sweep_whose_table_finds_no_room_is_stopped(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Here(tmp_path, tiny_folder, RUNS)

    def stops(*given: Any, **how: Any) -> None:
        raise StoppedEarly("no room")

    def full(path: Path, *given: Any, **how: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(sweep_module, "run", stops)
    monkeypatch.setattr(sweep_module, "write_whole", full)
    with pytest.raises(StoppedEarly, match=r"sweep\.json: No space left on device; make room there, and --resume"):
        here.go()


def test_a_process_of_its_own_says_that_a_run_can_go_on(tmp_path: Path, tiny_folder: Path) -> None:
    """Under a real limit, of the system, that its ``run.toml`` exceeds."""
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows(30)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
        with pytest.raises(StoppedEarly, match=r"run\.toml: File too large; make room there, and --resume goes on"):
            run_apart(str(data), str(tiny_folder), tmp_path / "run", quiet=True, settings=resolve())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_mistakes_are_found_before_any_work(tmp_path: Path, tiny_folder: Path) -> None:
    here = Here(tmp_path, tiny_folder, RUNS + '[[run]]\nname = "last"\ndata = "none.json"\n')
    with pytest.raises(DataError, match=r"run 'last': none\.json"):
        here.go()
    here.file.write_text(RUNS + '[[run]]\nname = "last"\nsettings.train.method = "lora"\nsettings.lora.rank = 999\n')
    with pytest.raises(SettingsError, match=r"run 'last': lora\.rank=999"):
        here.go()
    with pytest.raises(InstilError):
        Here(tmp_path, tiny_folder).go(judge="http://127.0.0.1:9")
    assert not here.out.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, tiny_folder: Path) -> None:
    """Those of /proc look as if one could write there; told before any look at rows and models."""
    here = Here(tmp_path, tiny_folder, '[[run]]\nname = "only"\n')
    here.out = Path("/proc/x")
    with pytest.raises(UserError, match=PROC):
        here.go()
    assert not here.screen.lines
    with pytest.raises(UserError, match=PROC):
        RunFolder(Path("/proc/x")).create()


def test_one_sweep_at_a_time(tmp_path: Path, tiny_folder: Path) -> None:
    here = Here(tmp_path, tiny_folder)
    here.out.mkdir()
    with FileLock(here.out / ".sweep.lock"), pytest.raises(RunFolderTaken, match="another sweep"):
        here.go()


def test_what_another_sweep_finished_meanwhile_is_kept(copied: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was at work until this one had looked at everything; what it made is not made again."""
    aside = copied.out.rename(copied.out.with_name("aside"))
    monkeypatch.setattr(sweep_module, "_check_judge", lambda file, screen: aside.rename(copied.out))
    monkeypatch.setattr(sweep_module, "run", None)
    assert [row.status for row in copied.go().table.rows] == ["kept"] * 3


@pytest.mark.slow
def test_processes_of_their_own_give_the_same_table(made: tuple[Here, SweepResult, list[int]], copied: Here) -> None:
    shutil.rmtree(copied.out / "thin")
    shutil.rmtree(copied.out / "first")
    copied.file.write_text(copied.file.read_text() + FAILS)
    done = copied.go(processes=True)
    assert [row.status for row in done.table.rows] == ["done", "kept", "done", "failed"]
    assert "Lower train.learning_rate" in done.table.rows[3].reason
    for here, there in zip(done.table.rows, made[1].table.rows, strict=False):
        assert (here.train_loss, here.validation_loss) == (there.train_loss, there.validation_loss)
        assert (here.after, here.against) == (there.after, there.against)
    assert done.table.rows[2].before_from == str(copied.out / "first")


def test_a_run_that_memory_does_not_allow_gets_its_own_process(copied: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copied.out / "thin")
    apart: list[Path] = []
    monkeypatch.setattr(sweep_module, "available_memory", lambda device: 1000)
    monkeypatch.setattr(sweep_module, "run_apart", lambda data, model, out, **more: apart.append(out))
    done = copied.go()
    assert apart == [copied.out / "thin"]
    assert done.table.rows[2].status == "failed"  # nothing was made
    assert "in a process of its own" in copied.screen.text


@pytest.mark.slow
def test_a_judge_scores_every_run(copied: Here) -> None:
    with judging(say=lambda message, number: '{"score": 4}', models=("judge",)) as server:
        done = copied.go(judge=f"{server.url}/v1")
        assert [row.after.mean if row.after else None for row in done.table.rows] == [75.0] * 3
        asked = len(server.asked)
        assert asked
        copied.go(judge=f"{server.url}/v1")
        assert len(server.asked) == asked
    done.check()
    assert "those of " in done.table.notes()[0]


def test_what_could_not_be_judged_is_taken_up_again(copied: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> Any:
        raise StoppedEarly("no more")

    monkeypatch.setattr(sweep_module, "_check_judge", lambda file, screen: None)
    monkeypatch.setattr(sweep_module, "measure", fails)
    done = copied.go(judge="ollama:x")
    assert [(row.status, row.after) for row in done.table.rows] == [("kept", None)] * 3
    with pytest.raises(StoppedEarly, match="the same command goes on"):
        done.check()
