"""The run folder: nothing foreign is lost, every file is read back as it was written, damage is one sentence."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import instil
from instil.errors import DataError, InstilError, RunFolderTaken, UserError
from instil.model.load import load_decoder
from instil.recipes.export.export import export
from instil.recipes.probe import probe
from instil.recipes.respond import respond_rows
from instil.recipes.run.run import run
from instil.recipes.score import score_path
from instil.recipes.sweep.file import Overrides
from instil.recipes.sweep.sweep import sweep
from instil.runs.folder import RunFolder
from instil.runs.report.report import refresh_report
from instil.screen import Screen, visible
from instil.settings.options import Settings
from instil.settings.resolve import resolve
from tests.conftest import SEPARATORS, rows

ONE_STEP = resolve(values={"max_steps": 1, "max_new_tokens": 2})


def test_line_separators_in_a_rows_text_survive_every_file(plain_run: Path) -> None:
    answered = json.loads((plain_run / "responses" / "tuned.json").read_text(encoding="utf-8"))
    assert [row["instruction"] for row in answered] == [f"Double the number {n}.{SEPARATORS}!" for n in range(34, 38)]
    assert respond_rows(str(plain_run), None, "test", None, Settings(), Screen()) == answered
    assert [verdict.row for verdict in score_path(plain_run)["tuned"].verdicts] == [34, 35, 36, 37]
    samples = (plain_run / "samples.jsonl").read_bytes().decode().rstrip("\n").split("\n")
    asked = [json.loads(line)["instruction"] for line in samples]
    assert asked == [f"Double the number {n}.{SEPARATORS}!" for n in (38, 39)] * 2
    shown = visible(f"Double the number 38.{SEPARATORS}!")  # with signs for what is no text
    assert shown in (plain_run / "report.html").read_bytes().decode()


def test_scores_are_keyed_by_the_rows_of_the_data_and_come_out_the_same_again(copied_run: Path) -> None:
    file = copied_run / "scores" / "tuned.offline.jsonl"
    written = file.read_bytes()
    assert [json.loads(line)["row"] for line in written.splitlines()] == [34, 35, 36, 37]
    file.unlink()
    score_path(copied_run)
    assert file.read_bytes() == written


def test_scores_of_rows_are_keyed_by_their_places_or_by_given_numbers() -> None:
    answered = [{"instruction": "a", "output": "b", "model_response": said} for said in ("b", "c")]
    assert [verdict.row for verdict in instil.score(answered)] == [0, 1]
    assert [verdict.row for verdict in instil.score(answered, numbers=[7, 3])] == [7, 3]


def test_overwriting_replaces_the_run_and_keeps_what_is_not_of_it(copied_run: Path, tiny_folder: Path) -> None:
    (copied_run / "notes.txt").write_text("mine")
    (copied_run / "figures").mkdir()
    (copied_run / "figures" / "a.png").write_text("mine too")
    (copied_run / "scores" / "judge.jsonl").write_text("of the run before")
    (copied_run / "checkpoints.unfinished").mkdir()
    (copied_run / "loss.png.unfinished").write_text("")
    again = run(rows(12), tiny_folder, copied_run, ONE_STEP, overwrite=True)
    assert (copied_run / "notes.txt").read_text() == "mine"
    assert (copied_run / "figures" / "a.png").read_text() == "mine too"
    assert sorted(file.name for file in (copied_run / "scores").iterdir()) == [
        "base.likelihood.jsonl",
        "base.offline.jsonl",
        "tuned.likelihood.jsonl",
        "tuned.offline.jsonl",
    ]
    assert not list(copied_run.glob("*.unfinished"))
    assert instil.load(again.path).template.name == "alpaca"


@pytest.mark.parametrize("inside", ["data", "model", "run"])
def test_overwriting_never_removes_what_the_new_run_reads(inside: str, copied_run: Path, tiny_folder: Path) -> None:
    data, model = copied_run.parent / "rows.json", tiny_folder
    if inside == "data":
        data = copied_run / "responses" / "mine.json"
    elif inside == "model":
        model = copied_run / "model"
    else:
        model = copied_run
    data.write_text(json.dumps(rows(12)))
    before = sorted(copied_run.rglob("*"))
    with pytest.raises(UserError, match=r"lies inside .* --overwrite would replace; choose another --out"):
        run(data, model, copied_run, ONE_STEP, overwrite=True)
    assert sorted(copied_run.rglob("*")) == before


def test_what_is_refused_leaves_an_earlier_run_alone(copied_run: Path, tiny_folder: Path) -> None:
    before = {path: path.read_bytes() for path in copied_run.rglob("*") if path.is_file()}
    with pytest.raises(UserError):
        run([{"instruction": "a"}], tiny_folder, copied_run, ONE_STEP, overwrite=True)
    with pytest.raises(UserError):
        run(rows(12), "no-such-model", copied_run, ONE_STEP, overwrite=True)
    assert {path: path.read_bytes() for path in copied_run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", ["mine", "[3]", '[{"instruction": "a"}]', '{"notes": ["a"]}', "", "[]"])
def test_a_foreign_file_among_the_answers_is_named_and_left_out(content: str, copied_run: Path) -> None:
    """Of a score, a report and a comparison; not where it was named itself."""
    known = score_path(copied_run)
    foreign = copied_run / "responses" / "a-note.json"
    foreign.write_text(content)
    said = io.StringIO()
    screen = Screen(console=Console(file=said, width=500))
    assert score_path(copied_run, screen=screen) == known
    (line,) = [line for line in said.getvalue().splitlines() if "left out" in line]
    assert line.startswith(f"left out: {foreign}: ")
    assert "cannot be" not in said.getvalue().replace(line, "")
    with pytest.raises(DataError, match=re.escape(str(foreign))):
        score_path(foreign)
    refresh_report(RunFolder(copied_run))
    assert instil.compare(copied_run, copied_run).comparison.rows == 4
    for name in ("base", "tuned"):
        (copied_run / "responses" / f"{name}.json").unlink()
    with pytest.raises(DataError, match=re.escape(str(foreign))):
        score_path(copied_run)


def respond(path: Path) -> Any:
    return respond_rows(str(path), None, None, None, Settings(), Screen())


DAMAGE: list[tuple[str, str | bytes, Callable[[Path], Any], str]] = [
    ("run.toml", "settings = [", instil.load, "run.toml: not valid TOML"),
    ("run.toml", b"\xff\xfe\x00", instil.load, "run.toml: not valid TOML"),
    ("run.toml", "a = " + "[" * 3000, instil.load, "run.toml: not valid TOML: nested too deeply"),
    ("run.toml", "", instil.load, "run.toml: damaged, it has no 'data'"),
    ("run.toml", "data = 3\n[settings]\n[hashes]\n", respond, "run.toml: damaged, it has no 'data'"),
    ("run.toml", "data = 'x'\nsettings = 1\n[hashes]\n", instil.load, "damaged, it has no 'settings'"),
    ("run.toml", "data = 'x'\n[settings]\ngenerate = 3\n[hashes]\n", instil.load, "damaged, wanted sections"),
    ("run.toml", "data = 'x'\n[settings.generate]\nmax_new_token = 3\n[hashes]\n", instil.load, "did you mean"),
    ("run.toml", "data = 'x'\n[settings.generate]\nseed = -3\n[hashes]\n", instil.load, r"generate\.seed=-3"),
    ("run.toml", "data = 'x'\n[settings]\ndata = 3\n[hashes]\n", respond, "damaged, wanted sections"),
    ("run.toml", "data = 'x'\ndata_path = 3\n[settings]\n[hashes]\n", respond, "'data_path' is no text"),
    ("split.json", "{", respond, "split.json: not valid JSON"),
    ("split.json", "[" * 100_000, respond, "split.json: not valid JSON: nested too deeply"),
    ("split.json", b"\xff\xfe\x00", score_path, "split.json: not valid JSON"),
    ("split.json", "[]", score_path, "split.json: damaged, wanted the row numbers"),
    ("split.json", '{"train": [], "test": 3, "validation": []}', respond, "split.json: damaged"),
    ("split.json", '{"train": [], "test": [[1]], "validation": []}', respond, "split.json: damaged"),
    ("responses/tuned.json", '[{"instruction": "a", ', score_path, r"tuned.json: not valid JSON"),
    ("responses/tuned.json", "", score_path, r"tuned.json: .*is empty"),
    ("responses/tuned.json", b"[\xff]", score_path, r"tuned.json"),
    ("responses/tuned.json", '[{"instruction": "a"}]', score_path, "1 row, but the run held out 4"),
    ("responses/tuned.json", "[3, 4, 5, 6]", score_path, "rows 0, 1, 2, 3: no text under 'model_response'"),
    ("model/template.json", "[]", instil.load, "template.json: not a template"),
    ("model/template.json", "{", instil.load, "template.json: not valid JSON"),
    ("model/template.json", '"alpaca"', instil.load, "template.json: not a template"),
]


@pytest.mark.parametrize(("name", "content", "use", "says"), DAMAGE)
def test_damage_is_one_sentence(
    name: str, content: str | bytes, use: Callable[[Path], Any], says: str, copied_run: Path
) -> None:
    (copied_run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InstilError, match=says) as caught:
        use(copied_run)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value).strip()


def test_a_part_of_a_run_that_is_missing_is_named(copied_run: Path) -> None:
    (copied_run / "split.json").unlink()
    with pytest.raises(UserError, match=r"split\.json: cannot be read"):
        respond(copied_run)
    shutil.rmtree(copied_run / "responses")
    (copied_run / "split.json").write_text('{"train": [], "test": [1], "validation": []}')
    with pytest.raises(UserError, match="holds no answers"):
        score_path(copied_run)
    shutil.rmtree(copied_run / "model")
    with pytest.raises(UserError, match="stopped before its model was saved"):
        instil.load(copied_run)


def test_a_disk_without_room_is_told_before_any_work(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sum(parameter.nbytes for parameter in load_decoder(tiny_folder).parameters())
    for free, patience, fits in [(whole, 0, True), (whole - 1, 0, False), (whole, 1, False), (2 * whole, 1, True)]:
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        out = tmp_path / f"run-{free}-{patience}"
        settings = resolve(values={"max_steps": 1, "max_new_tokens": 2, "patience": patience, "save_every": "0"})
        if fits:
            run(rows(12), tiny_folder, out, settings=settings)
            continue
        with pytest.raises(UserError, match=rf"needs \d\.\d\d GB on disk,.* and .* free at {tmp_path}; make room"):
            run(rows(12), tiny_folder, out, settings=settings)
        assert not out.exists()


def test_what_is_gone_by_now_takes_no_room(tmp_path: Path) -> None:
    """A checkpoint that another process has just removed, or a link that leads nowhere."""
    folder = RunFolder(tmp_path / "run")
    (folder.checkpoints / "step-000000002").mkdir(parents=True)
    (folder.checkpoints / "step-000000002" / "state.safetensors").symlink_to(tmp_path / "nowhere")
    folder.check_room(1, 1)


BELOW = {
    "a file in the way": ("file/deep/run", RunFolderTaken, "file is a file; choose another --out"),
    "the file itself": ("file", RunFolderTaken, "file is a file; choose another --out"),
    "of the kernel": ("/proc/nobody/run", UserError, "/proc/nobody/run: the folder cannot be made: No such file"),
    "of the kernel, itself": ("/proc/self", UserError, "/proc/self: cannot be written to: No such file"),
    "a device": ("/dev/null/run", RunFolderTaken, "/dev/null is a file; choose another --out"),
    "a name that is too long": ("x" * 300 + "/run", UserError, "the folder cannot be made: File name too long"),
    "a link in a circle": ("circle/run", UserError, "circle is a link that leads nowhere"),
    "a link that leads nowhere": ("nowhere", UserError, "nowhere is a link that leads nowhere"),
    "below such a link": ("nowhere/deep/run", UserError, "nowhere is a link that leads nowhere"),
}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here")
@pytest.mark.parametrize("where", BELOW)
def test_a_folder_that_cannot_be_made_is_named_and_nothing_else(where: str, tmp_path: Path, tiny_folder: Path) -> None:
    """Not by how much room there is, which is none where nothing can be written; and nothing stays of the attempt."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    written = tmp_path / "sweep.toml"
    written.write_text(f"model = '{tiny_folder}'\n[[run]]\nname = 'one'")
    before = sorted(tmp_path.iterdir())
    name, kind, says = BELOW[where]
    out = tmp_path / name
    asks: list[Callable[[], object]] = [
        lambda: run(rows(12), tiny_folder, out, ONE_STEP, answers=False),
        lambda: probe(rows(40), tiny_folder, resolve(), out=out),
        lambda: export(tiny_folder, "hf", out / "hf"),
        lambda: sweep(written, Overrides(out=out)),
    ]
    for ask in asks:
        with pytest.raises(kind, match=re.escape(says)) as caught:
            ask()
        assert not re.search(r"GB|\n", str(caught.value))
        assert str(caught.value).endswith("choose another --out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_without_rights_or_on_a_medium_that_is_read_only(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system tells it, whoever runs this; a folder that is there and one that is not."""
    real = os.mkdir

    def refusing(path: Any, *rest: Any, **more: Any) -> None:
        if str(path).startswith(str(tmp_path / "drive")):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        real(path, *rest, **more)

    (tmp_path / "drive").mkdir()
    monkeypatch.setattr(os, "mkdir", refusing)
    for name, says in {"new/run": "the folder cannot be made", "": "cannot be written to"}.items():
        out = tmp_path / "drive" / name
        with pytest.raises(UserError, match=f"^{out}: {says}: Read-only file system; choose another --out$"):
            run(rows(12), tiny_folder, out, ONE_STEP, answers=False)
    assert not list((tmp_path / "drive").iterdir())


def test_nothing_stays_of_a_look_at_a_folder(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "deep" / "er" / "run"):
        RunFolder(out).check_free(overwrite=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("name", ["", "run", "deep/er/run"])
def test_a_user_without_rights_is_told_so(name: str, tmp_path: Path) -> None:
    """Whoever runs this: in a process that has given its rights up."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing"
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            RunFolder(locked / name).check_free(overwrite=False)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        said = told.read()
    os.waitpid(child, 0)
    what = r"(cannot be written to|the folder cannot be made): Permission denied; choose another --out"
    assert re.fullmatch(f"UserError: {locked / name}: {what}", said)
    assert not list(locked.iterdir())
