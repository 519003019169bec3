"""Two runs or files compared: the same rows, however they lie; leaks apart; what is written where."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import instil
from instil.errors import DataError, ModelError
from instil.evaluate.offline import score_offline
from instil.model.load import load_decoder
from instil.recipes.compare import common_rows, compare_scored
from instil.recipes.export.export import export
from instil.recipes.inspect import inspect
from instil.recipes.score import Scored, score_path
from instil.records import Example, Turn
from instil.runs.answers import AnsweredRows
from instil.runs.folder import RunFolder
from instil.runs.report.report import refresh_report
from instil.settings.asking import ScoreOptions
from instil.settings.resolve import resolve
from tests.conftest import rows
from tests.faults.judge_server import judging
from tests.processes import instil as command


def file_of(folder: Path, name: str, answers: dict[int, str], order: list[int] | None = None) -> Path:
    """Rows with answers, by their numbers."""
    data = rows(40)
    path = folder / f"{name}.json"
    path.write_text(json.dumps([{**data[n], "model_response": answers[n]} for n in order or list(answers)]))
    return path


def test_files_are_compared_row_by_row_in_any_order(tmp_path: Path) -> None:
    right = {n: f"It is {2 * n}." for n in range(30)}
    wrong = {n: f"No idea about {n}" for n in range(30)}
    a = file_of(tmp_path, "a", {**wrong, 35: "x", 36: "y"})
    b = file_of(tmp_path, "b", right, order=[*reversed(range(30))])
    found = instil.compare(a, b)
    assert found.comparison.outcome == "better"
    assert (found.comparison.rows, found.comparison.wins, found.only_a, found.only_b) == (30, 30, 2, 0)
    assert set(found.comparison.gained) == set(range(30))  # B's own numbers
    assert found.metrics["exact_match"].difference is not None
    assert found.metrics["exact_match"].difference.mean == 100
    assert (found.looked, found.leaks, found.clean) == (False, (), None)
    assert instil.compare(b, a).comparison.outcome == "worse"
    same = instil.compare(b, b)
    assert same.comparison.outcome == "not distinguishable"
    assert same.as_json()["verdict"].startswith("B is not distinguishable from A")


def test_equal_rows_are_paired_one_after_the_other(tmp_path: Path) -> None:
    for name, answers in (("a", ["It is 2.", "no"]), ("b", ["no", "It is 2."])):
        lines = [{"instruction": "Double 1.", "output": "It is 2.", "model_response": said} for said in answers]
        (tmp_path / f"{name}.json").write_text(json.dumps(lines))
    found = instil.compare(tmp_path / "a.json", tmp_path / "b.json").comparison
    assert (found.rows, found.wins, found.losses) == (2, 1, 1)


def test_rows_without_one_in_common_are_refused(tmp_path: Path) -> None:
    a, b = file_of(tmp_path, "a", {1: "x"}), file_of(tmp_path, "b", {2: "x"})
    with pytest.raises(DataError, match=r"no row in common.*instil respond RUN --data"):
        instil.compare(a, b)
    with pytest.raises(DataError, match="no such file"):
        instil.compare(a, tmp_path / "nowhere")


def test_runs_are_compared_by_their_tuned_answers_and_base_can_be_named(copied_run: Path) -> None:
    base, tuned = copied_run / "responses" / "base.json", copied_run / "responses" / "tuned.json"
    lines = json.loads(tuned.read_text())
    for line in lines:
        line["model_response"] = line["output"]
    tuned.write_text(json.dumps(lines))
    found = instil.compare(base, copied_run)
    assert found.comparison.outcome == "not distinguishable" or found.comparison.wins == 4
    assert found.comparison.b is not None
    assert found.comparison.b.mean == 100
    assert (found.looked, found.a, found.b) == (True, "base.json", "run")


@pytest.fixture
def stopped(plain_run: Path, tmp_path: Path) -> Path:
    """That run as it would be had it been stopped while it trained."""
    folder = Path(shutil.copytree(plain_run, tmp_path / "stopped"))
    shutil.rmtree(folder / "model")
    for name in ("report.json", "report.html", "responses/tuned.json"):
        (folder / name).unlink()
    for file in (folder / "scores").glob("tuned.*"):
        file.unlink()
    return folder


NO_ANSWERS = r"stopped: no answers of the tuned model .*--overwrite.*only if their file is named: .*base\.json"


def test_a_stopped_runs_answers_from_before_training_are_not_the_runs(stopped: Path, copied_run: Path) -> None:
    for side, given in (("a", (stopped, copied_run)), ("b", (copied_run, stopped)), ("a", (stopped, stopped))):
        with pytest.raises(DataError, match=f"^{side}: .*{NO_ANSWERS}"):
            instil.compare(*given)
        with pytest.raises(DataError, match=NO_ANSWERS):
            common_rows(*given, "ollama:judge")
    (stopped / "responses" / "mine.json").write_bytes((stopped / "responses" / "base.json").read_bytes())
    with pytest.raises(DataError, match=rf"{NO_ANSWERS}, .*mine\.json"):
        instil.compare(copied_run, stopped)
    for name in ("base", "mine"):  # a file means what it says
        assert instil.compare(stopped / "responses" / f"{name}.json", copied_run).comparison.rows == 4
    said = command("compare", stopped, copied_run)
    assert (said.returncode, said.stdout) == (2, "")
    said = command("prefer", "--from", stopped, copied_run, "--judge", "ollama:judge", "--out", stopped / "pairs.json")
    assert said.returncode == 2
    assert re.search(NO_ANSWERS, said.stderr)
    shutil.copytree(copied_run / "model", stopped / "model")  # stopped later: it can answer
    with pytest.raises(DataError, match=r"stopped --split test --out FILE\.json .* with its model; then name the file"):
        instil.compare(copied_run, stopped)


def test_what_else_lies_beside_the_tuned_answers_does_not_matter(copied_run: Path, plain_run: Path) -> None:
    """A damaged file of other answers, one of other rows, what a Mac leaves; nor whether anything can be written."""
    folder = copied_run / "responses"
    (folder / "base.json").write_text("[{")
    (folder / "more.json").write_text(json.dumps([{**row, "model_response": ""} for row in rows(7)]))
    (folder / "._tuned.json").write_bytes(b"\0\5\x16")
    shutil.rmtree(copied_run / "scores")
    (copied_run / "scores").write_text("no folder")
    assert instil.compare(copied_run, plain_run).comparison.rows == 4
    assert common_rows(plain_run, copied_run, "ollama:judge").only_b == 0
    (copied_run / "scores").unlink()
    (folder / "base.json").unlink()
    (folder / "more.json").unlink()
    assert score_path(copied_run)["tuned"].coverage == 1
    assert (copied_run / "scores" / "tuned.offline.jsonl").is_file()


def test_answers_that_are_not_there_are_named_with_what_gives_them(copied_run: Path, plain_run: Path) -> None:
    tuned = copied_run / "responses" / "tuned.json"
    tuned.unlink()
    tuned.symlink_to("nowhere")
    with pytest.raises(DataError, match=r"tuned\.json: cannot be read: No such file"):
        instil.compare(copied_run, plain_run)
    shutil.rmtree(tuned.parent)
    with pytest.raises(DataError, match=r"no answers; instil respond .*--out FILE\.json .*; then name the file$"):
        instil.compare(plain_run, copied_run)
    shutil.rmtree(copied_run / "model")
    with pytest.raises(DataError, match=r"no answers; make the run again, with --overwrite$"):
        instil.compare(plain_run, copied_run)


def test_what_else_a_stopped_run_is_asked_for_is_not_taken_for_the_runs(stopped: Path, tiny_folder: Path) -> None:
    """Scores of the answers from before training are named so, and there is no model to answer or to train on."""
    said = command("score", stopped, "--json")
    assert said.returncode == 0, said.stderr
    assert set(json.loads(said.stdout)["scores"]) == {"base"}
    assert re.search(NO_ANSWERS, said.stderr)
    no_model = r"stopped: the run has no model folder; it was stopped before its model was saved"
    for ask in (lambda: instil.load(stopped), lambda: load_decoder(stopped), lambda: export(stopped, "hf"),
                lambda: inspect(rows(20), str(stopped), resolve(), [])):  # fmt: skip
        with pytest.raises(ModelError, match=no_model):
            ask()
    with pytest.raises(ModelError, match="stopped: the run has no adapter folder"):
        instil.load(tiny_folder, adapter=stopped)


def test_rows_like_training_rows_are_reported_apart(copied_run: Path) -> None:
    split = json.loads((copied_run / "split.json").read_text())
    held_out = split["test"] or split["validation"]
    split["near_duplicates"] = [{"row": held_out[0], "train_row": 3, "cosine": 0.95}]
    (copied_run / "split.json").write_text(json.dumps(split))
    found = instil.compare(copied_run / "responses" / "base.json", copied_run)
    assert [near.row for near in found.leaks] == [held_out[0]]
    assert found.clean is not None
    assert found.clean.rows == found.comparison.rows - 1
    assert found.as_json()["without_near_duplicates"]["rows"] == found.clean.rows


def test_a_run_finds_its_leaks_and_how_likely_its_references_are(tiny_folder: Path, tmp_path: Path) -> None:
    data: list[dict[str, Any]] = rows(40)
    data[36] = dict(data[2])  # a test row that is a training row
    run = instil.finetune(data, model=tiny_folder, out=tmp_path / "run", max_steps=2, max_new_tokens=3)
    split = json.loads((run.path / "split.json").read_text())
    assert {"row": 36, "train_row": 2, "cosine": 1.0} in split["near_duplicates"]
    report = (run.path / "report.html").read_text()
    assert "near duplicate of training row 2" in report
    beside = report.partition("Held-out rows that are nearly training rows (1)")[2].partition("</details>")[0]
    assert "test row 36" in beside
    assert beside.count("Double the number 2.") == 2
    [leak] = run.as_json()["leaks"]["held_out"]
    assert (leak["row"], leak["train_row"], leak["train_text"]) == (36, 2, "Double the number 2. n = 2")
    assert set(run.seconds) >= {"prepare"}
    before, after = (
        [json.loads(line) for line in (run.path / "scores" / f"{which}.likelihood.jsonl").read_text().splitlines()]
        for which in ("base", "tuned")
    )
    assert [line["row"] for line in before] == split["test"]
    assert sum(line["metrics"]["loss"] for line in after) < sum(line["metrics"]["loss"] for line in before)
    likely = instil.compare(run.path / "responses" / "base.json", run.path, "likelihood")
    assert likely.comparison.difference is not None
    assert likely.comparison.difference.mean > 0
    assert run.verdict.startswith("after is ")


def test_a_judges_scores_enter_the_report(copied_run: Path) -> None:
    for name in ("base.json", "tuned.json"):
        assert (copied_run / "responses" / name).is_file()
    with judging() as server:
        found = score_path(copied_run, f"{server.url}/v1")
        assert set(found) == {"base", "tuned"}
        assert found["tuned"].coverage == 1
        asked = len(server.asked)
        html = (copied_run / "report.html").read_text()
        assert f"{server.url}/v1" in html
        assert score_path(copied_run, f"{server.url}/v1")["tuned"].verdicts == found["tuned"].verdicts
        instil.compare(copied_run / "responses" / "base.json", copied_run, f"{server.url}/v1")
        assert len(server.asked) == asked  # nothing twice
        score_path(copied_run, f"{server.url}/v1", ScoreOptions(prompt="book"))
        assert "(book)" not in html
        assert "(book)" in (copied_run / "report.html").read_text()
    assert (copied_run / "scores" / "verdicts.journal").is_file()


def test_a_damaged_file_of_the_report_is_named(copied_run: Path) -> None:
    before = (copied_run / "report.html").read_bytes()
    kept = json.loads((copied_run / "report.json").read_text())
    for change, says in (
        ({"finish": None}, "'finish' is null; wanted an object of lists of words of stop, length, no_room, cancelled"),
        ({"finish": {"base": ["done"]}}, "'finish' is an object; wanted an object of lists"),
        ({"finish": {"base": ["stop"]}}, "'finish' of base has 1 for 4 answers in base.json"),
        ({"seconds": 1.0}, "'seconds' is a number; wanted an object of numbers"),
        ({"steps": "3"}, "'steps' is a string; wanted a whole number"),
        ({"unended": None}, "'unended' is null; wanted an object of lists of texts"),
        ({"tasks": []}, "'tasks' has 0 for 4 answers in base.json"),
        ({"validation_loss": []}, "'validation_loss' is a list; wanted a number or null"),
        ([], "found a list; wanted an object"),
    ):
        (copied_run / "report.json").write_text(json.dumps({**kept, **change} if isinstance(change, dict) else change))
        with pytest.raises(DataError, match=rf"report\.json: damaged: {says}.*; the report is left as it was$"):
            refresh_report(RunFolder(copied_run))
        assert score_path(copied_run)["tuned"].coverage == 1  # the scores are there all the same
        assert (copied_run / "report.html").read_bytes() == before
    (copied_run / "report.json").write_text(json.dumps(kept))
    samples = (copied_run / "samples.jsonl").read_text()
    (copied_run / "samples.jsonl").write_text(samples + '{"step": 3}\n')
    with pytest.raises(DataError, match=r"samples\.jsonl: damaged: line \d+: it has no 'row'; the report is left"):
        refresh_report(RunFolder(copied_run))
    (copied_run / "samples.jsonl").write_text(samples)
    (copied_run / "responses" / "tuned.json").rename(copied_run / "responses" / "other.json")
    with pytest.raises(DataError, match=r"no responses/tuned\.json in it; the report is left"):
        refresh_report(RunFolder(copied_run))
    (copied_run / "responses" / "other.json").rename(copied_run / "responses" / "tuned.json")
    (copied_run / "report.json").unlink()
    (copied_run / "report.html").unlink()
    score_path(copied_run)  # an older run has none
    assert not (copied_run / "report.html").exists()
    for line, says in (
        ("{}", "it has no 'row'"),
        ("[]", "found a list; wanted an object"),
        ('{"row": 1, "judge": "likelihood", "score": "1"}', "'score' is a string; wanted a number or null"),
        ('{"row": true, "judge": "likelihood", "score": 1}', "'row' is true/false; wanted a whole number"),
        ('{"row": 1, "judge": "likelihood", "score": 1, "why": ""}', "unknown key 'why'"),
        ('{"row": 1, "judge": "j", "score": 1, "metrics": {"loss": "x"}}', "'metrics' is an object; wanted an object"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "Expecting property name"),
    ):
        (copied_run / "scores" / "tuned.likelihood.jsonl").write_text(f"\n{line}\n")
        with pytest.raises(DataError, match=f"damaged: line 2: {says}.*; instil score writes it anew$"):
            instil.compare(copied_run / "responses" / "tuned.json", copied_run, "likelihood")


def test_a_run_moved_elsewhere_is_scored_as_before(copied_run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(copied_run, tmp_path / "moved"))
    before = (moved / "scores" / "tuned.offline.jsonl").read_bytes()
    score_path(moved)
    assert (moved / "scores" / "tuned.offline.jsonl").read_bytes() == before


def test_conversations_that_differ_before_their_last_question_are_other_rows() -> None:
    """Equal last questions and answers, in another order: each goes with the one that has the same history."""

    def talked(about: str) -> Example:
        return Example("And now?", "Fine.", history=(Turn("user", f"About {about}."), Turn("assistant", "Yes.")))

    first, second = talked("tea"), talked("milk")
    a = AnsweredRows("a", (first, second), ("Fine.", "No."), Path("a.json"))
    b = AnsweredRows("b", (second, first), ("No.", "Fine."), Path("b.json"))
    scored = [Scored(one.which, "offline", tuple(score_offline(one.examples, one.answers))) for one in (a, b)]
    found = compare_scored((a, b), (scored[0], scored[1]), ("a", "b"), "offline")
    assert (found.comparison.rows, found.comparison.wins, found.comparison.losses) == (2, 0, 0)
    only = AnsweredRows("c", (talked("rain"),), ("Fine.",), Path("c.json"))
    with pytest.raises(DataError, match="no row in common"):
        compare_scored((a, only), (scored[0], scored[1]), ("a", "c"), "offline")
