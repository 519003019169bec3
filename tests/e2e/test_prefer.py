"""The verb prefer as a user gives it: pairs on disk, findings on stdout, one line on an error, the right exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from instil.cli import app
from instil.errors import InstilError
from tests.conftest import rows
from tests.faults.judge_server import judging
from tests.processes import instil
from tests.recipes.test_prefer import answers, choose
from tests.synthesis.test_rewriting import say

GOOD = {"instruction": "Say hi.", "input": "", "chosen": "Hi.", "rejected": "What?"}


def test_pairs_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps([GOOD, {**GOOD, "chosen": "Here is the rewritten answer:\nHi."}]))
    done = instil("prefer", "--check", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 pairs: 1 warning\nwarning: 1 chosen and 0 rejected answers begin with a preface")
    file.write_text(json.dumps([{**GOOD, "rejected": "Hi."}]))
    done = instil("prefer", "--check", file, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["usable"] is False
    assert done.stderr == (
        f"instil: {file} is not to be trained on: 1 of 1 pair has equal answers and prefers nothing: row 0\n"
    )


@pytest.mark.slow
def test_each_way_makes_pairs(tiny_folder: Path, tmp_path: Path) -> None:
    a = answers(tmp_path / "a.json", 6, lambda n: "It is.")
    b = answers(tmp_path / "b.json", 6, lambda n: "It is")
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows(6)))
    with judging(say=choose) as server:
        judge = f"{server.url}/v1"
        done = instil("prefer", "--from", a, b, "--judge", judge, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["way"], found["pairs"], found["out"]) == ("between", 6, "pairs.json")
        server.say = say
        done = instil("prefer", "--rewrite", "--data", data, "--with", judge, "-o", tmp_path / "polite.json")
        assert done.returncode == 0, done.stderr
        assert f"6 pairs of 6 rows in {tmp_path / 'polite.json'} (6 questions now)" in done.stdout
        assert "few to say anything of style" in done.stdout
        server.say = lambda message, number: json.dumps({"score": number % 5 + 1})
        done = instil(
            "prefer", "--samples", 3, "--model", tiny_folder, "--data", data, "--judge", judge, "--gap", 20,
            "-o", tmp_path / "sampled.json", "-s", "generate.max_new_tokens=6", "-s", 'generate.stop=["a", "e"]',
            "-s", "score.concurrency=1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    for name in ("pairs", "polite", "sampled"):
        assert CliRunner().invoke(app, ["prefer", "--check", str(tmp_path / f"{name}.json")]).exit_code == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "wanted a way of making pairs"),
        (["--samples", "2", "--rewrite"], 2, "wanted one"),
        (["--samples", "2", "--data", "rows.json"], 2, "--samples needs --model"),
        (["--rewrite", "--data", "rows.json"], 2, "--rewrite needs --with, such as --with ollama:llama3"),
        (["--rewrite", "--with", "ollama:x", "--data", "rows.json", "--gap", "3"], 2, "--gap goes with --samples"),
        (["--rewrite", "--with", "ollama:x", "--data", "r", "-s", "score.seed=1"], 2, "only make.* settings"),
        (["--from", "a.json", "a.json"], 2, "--from needs --judge"),
        (["--from", "a.json", "a.json", "-j", "offline"], 2, "gives scores and does not choose"),
        (["--check", "nowhere.json"], 2, "no such file"),
        (["--check", "rows.json", "--out", "x"], 2, "--out goes with"),
        (["--check", "rows.json", "-s", "make.seed=1"], 2, "has no settings"),
        (["--rewrite", "--with", "offline", "--data", "rows.json"], 2, "no model behind 'offline'"),
        (["--rewrite", "--with", "http://127.0.0.1:9/v1", "--data", "rows.json"], 2, "127.0.0.1:9"),
        (["--samples", "2", "--model", "nowhere", "--data", "rows.json"], 2, "nowhere"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside this process, which is quicker: the error that the command line prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    (tmp_path / "rows.json").write_text(json.dumps(rows(3)))
    done = CliRunner().invoke(app, ["prefer", *words])
    assert isinstance(done.exception, InstilError), done.output
    assert done.exception.exit_code == code
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not done.stdout
    assert not (tmp_path / "pairs.json").exists()


def test_rows_that_cannot_be_used_are_left_out_by_the_setting_that_the_error_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    holes = rows(4)
    holes[2]["output"] = ""
    (tmp_path / "rows.json").write_text(json.dumps(holes))
    with judging(say=lambda message, number: f"Said {number}, with pleasure") as server:
        words = ["prefer", "--rewrite", "--data", "rows.json", "--with", f"{server.url}/v1"]
        refused = CliRunner().invoke(app, words)
        assert "--set data.skip_bad=true" in str(refused.exception)
        assert [one.name for one in tmp_path.iterdir()] == ["rows.json"]  # no journal of nothing
        done = CliRunner().invoke(app, [*words, "--set", "data.skip_bad=true", "--json"])
    made = json.loads(done.stdout)
    assert made["pairs"] == 3
    assert "row 2: output is empty" in made["notes"][0]


def test_help_names_every_way() -> None:
    shown = CliRunner().invoke(app, ["prefer", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    for word in ("--from", "--samples", "--rewrite", "--check", "--gap", "--both"):
        assert word in shown.output
