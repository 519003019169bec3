"""The commands as a user gives them: results on stdout, one clear line on an error, the right exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import rows
from tests.processes import instil

QUICK = ("--set", "train.max_steps=2", "--set", "generate.max_new_tokens=3")


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "rows.json").write_text(json.dumps(rows(40)))
    done = instil("run", folder / "rows.json", "--model", tiny_folder, "--out", folder / "run", "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["steps"] == 2
    assert set(result["scores"]) == {"base", "tuned", "echo"}
    assert "Training" in done.stderr
    return folder / "run"


def test_help_and_version() -> None:
    for arguments in (["--help"], ["run", "--help"], ["respond", "-h"], ["--version"]):
        done = instil(*arguments)
        assert done.returncode == 0
        assert done.stdout
    assert instil().returncode in (0, 2)
    assert "Traceback" not in instil("nonsense").stderr
    assert instil("nonsense").returncode == 2
    by_itself = subprocess.run([sys.executable, "-m", "instil.cli", "nonsense"], capture_output=True, check=False)
    assert by_itself.returncode == 2
    assert b"nonsense" in by_itself.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("nonsense",), "No such command 'nonsense'; see instil --help"),
        (("run", "--bogus"), r"No such option: --bogus \(Possible options: --out\); see instil run --help"),
        (("run", "--processes", "0"), "Invalid value for '--processes': .*1; see instil run --help"),
        (("train", "--processes", "two"), "Invalid value for '--processes': .*integer.*; see instil train --help"),
        (("serve", "--rows", "2000"), "Invalid value for '--rows': .*1024; see instil serve --help"),
        (("run", "--set"), "Option '--set' requires an argument"),
        (("verify",), "Missing argument 'run'; see instil verify --help"),
        (("verify", "one", "two"), r"Got unexpected extra argument\(s\) \(two\); see instil verify --help"),
    ],
)
def test_what_the_command_line_refuses_is_one_line_too(given: tuple[str, ...], said: str) -> None:
    done = instil(*given)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"instil: {said}\n", done.stderr), done.stderr


@pytest.mark.slow
def test_the_summary_names_the_report(tiny_folder: Path, data_file: Path) -> None:
    out = data_file.parent / "run"
    done = instil("run", data_file, "-m", tiny_folder, "-o", out, *QUICK)
    assert done.returncode == 0
    assert str(out / "report.html") in done.stdout
    assert "before" in done.stdout


@pytest.mark.slow
def test_the_default_run_folder(tiny_folder: Path, data_file: Path) -> None:
    done = instil("train", data_file, "-m", tiny_folder, *QUICK, cwd=data_file.parent)
    assert done.returncode == 0, done.stderr
    assert (data_file.parent / "runs" / f"rows-{tiny_folder.stem}" / "model").is_dir()


def test_respond(made: Path, tiny_folder: Path, tmp_path: Path) -> None:
    one = instil("respond", made, "--instruction", "Name a colour.", "--json")
    assert one.returncode == 0, one.stderr
    assert set(json.loads(one.stdout)) == {"instruction", "input", "model_response", "finish"}
    test_rows = instil("respond", made)
    assert json.loads(test_rows.stdout) == json.loads((made / "responses" / "tuned.json").read_text())
    out = tmp_path / "deep" / "answers.json"
    validation = instil("respond", made, "--split", "validation", "--out", out)
    assert validation.returncode == 0
    assert len(json.loads(out.read_text())) == 2
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"instruction": "a"}\n{"instruction": "b", "input": "c"}\n')
    assert (
        len(json.loads(instil("respond", tiny_folder, "--data", asked, "-s", "generate.max_new_tokens=2").stdout)) == 2
    )


def test_score(made: Path) -> None:
    done = instil("score", made, "--json")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)["scores"]
    assert scores["tuned"]["rows"] == scores["tuned"]["scored"] == 4
    assert "tuned" in instil("score", made / "responses" / "tuned.json").stdout
    assert instil("score", made, "--judge", "oracle").returncode == 2


def test_inspect(tiny_folder: Path, data_file: Path) -> None:
    done = instil("inspect", data_file, "-m", tiny_folder, "--row", 3, "--row", 35, "--json")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert [row["part"] for row in seen["rows"]] == ["train", "test"]
    trained = "".join(t["text"] for t in seen["rows"][0]["tokens"] if t["fate"] == "trained")
    assert trained == "It is 6.<end>"
    shown = instil("inspect", data_file, "-m", tiny_folder)
    assert "«It is 0.<end>»" in shown.stdout
    assert instil("inspect", data_file, "-m", tiny_folder, "--row", 99).returncode == 2


def test_settings_are_listed() -> None:
    assert "train.learning_rate" in instil("settings").stdout
    assert json.loads(instil("settings", "--json").stdout)["train"]["batch_size"] == 8


BAD_FILES = {
    "empty.json": ("", "is empty"),
    "words.json": ("hello there", "neither JSON nor JSONL"),
    "object.json": ('{"rows": 1}', "found a JSON object"),
    "nothing.json": ("[]", "no rows"),
    "lacks.json": ('[{"instruction": "a"}]', "row 0: output is missing"),
    "null.json": ('[{"instruction": "a", "output": null}]', "row 0: output is null"),
    "number.json": ('[{"instruction": 7, "output": "a"}]', "row 0: instruction is number"),
    "nested.json": ('[{"instruction": "a", "output": ["b"]}]', "row 0: output is list"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_data_is_one_message_exit_2_and_nothing_written(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    content, says = BAD_FILES[name]
    (tmp_path / name).write_text(content)
    done = instil("run", tmp_path / name, "--model", tiny_folder, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("run", "no-such.json"), 2, "no such file"),
        (("run", "starter", "--model", "no-such-model"), 2, "no such file or folder, and no model of that name"),
        (("run", "starter", "--set", "train.epoch=2"), 2, "did you mean train.epochs"),
        (("run", "starter", "--config", "no.toml"), 2, "cannot be read"),
        (("respond", "no-such-run"), 2, "not a run folder"),
        (("score", "no-such-run"), 2, "no such file"),
        (("inspect", "."), 2, "is a folder"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], code: int, says: str, tmp_path: Path) -> None:
    done = instil(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert says in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("instil: ")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_taken_folder_is_exit_3(made: Path, tiny_folder: Path) -> None:
    done = instil("run", made.parent / "rows.json", "-m", tiny_folder, "--out", made)
    assert done.returncode == 3
    assert "--overwrite" in done.stderr


def test_a_reader_that_leaves_is_no_error(made: Path) -> None:
    code = f"{sys.executable} -m instil.cli respond {made} | head -c 1"
    done = subprocess.run(code, shell=True, capture_output=True, text=True, check=False, timeout=120)
    assert "Traceback" not in done.stderr


def test_a_name_that_no_file_can_have_is_the_users_mistake(tmp_path: Path) -> None:
    for words in (("score", "x" * 300), ("export", "x" * 300, "--to", "hf", "--out", tmp_path / "out")):
        done = instil(*words)
        assert done.returncode == 2
        assert done.stderr.endswith("File name too long; choose another name\n")
