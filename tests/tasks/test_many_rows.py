"""A run of many rows is the run that it would be in memory; what differs is where the rows lie."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instil.data import splits
from instil.data.splits import PARTS
from instil.data.store import sources
from instil.data.store.examples import ExampleStore
from instil.data.subset import Lazy, Subset
from instil.errors import DataError, SettingsError
from instil.recipes.inspect import inspect
from instil.recipes.run.run import run
from instil.runs.folder import RunFolder
from instil.settings.resolve import resolve
from instil.tasks import answers
from instil.tasks.prepare import prepare
from instil.train.metrics import read_metrics
from tests.conftest import rows


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTIL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def a_file(folder: Path, count: int = 60) -> Path:
    made = rows(count)
    made[7]["instruction"] = made[3]["instruction"] = "Say caf\u00e9 three times, and nothing else at all."
    made[55] = {**made[3]}  # a prompt of a training row
    made[57]["instruction"] += " \x1b[31m"  # the first that is sampled
    (folder / "rows.json").write_text(json.dumps(made), encoding="utf-8")
    return folder / "rows.json"


@pytest.mark.parametrize(
    "values", [{}, {"split": "grouped", "max_length": 44, "normalise": "nfc"}, {"train_on": "all"}], ids=str
)
def test_a_store_changes_nothing_but_where_rows_lie(
    values: dict[str, Any], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, settings = a_file(tmp_path), resolve(values=values)
    known = prepare(file, tiny_folder, settings)
    monkeypatch.setattr(sources, "MANY", 60)
    found = prepare(file, tiny_folder, settings)
    assert isinstance(found.source.examples, ExampleStore)
    assert all(isinstance(found.rows[part], Subset) for part in PARTS)
    assert tuple(found.source.examples) == known.source.examples
    assert found.source.sha256 == known.source.sha256
    for part in PARTS:
        assert tuple(found.split.part(part)) == tuple(known.split.part(part))
        assert list(found.rows[part]) == list(known.rows[part])
        assert list(found.usable(part)) == list(known.usable(part))
    (note,) = set(found.preflight.notes) - set(known.preflight.notes)
    assert note.startswith("rows and their ids are kept for the next time (0 MB); to be rid of them: rm -r")
    assert replace(found.preflight, notes=known.preflight.notes) == known.preflight
    assert found.split.as_json() == known.split.as_json()
    ours, theirs = found.training, known.training
    assert isinstance(ours.rows, Lazy)
    assert [ours.rows[at] for at in ours.order(1)] == [theirs.rows[at] for at in theirs.order(1)]
    assert set(ours.ids()) >= set(theirs.ids())
    assert [batch.examples for batch in ours.longest()] == [batch.examples for batch in theirs.longest()]
    assert ours.sizes() == theirs.sizes()


def test_rows_are_read_and_encoded_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """Until the file changes; another template has ids of its own, and no other rows."""
    monkeypatch.setattr(sources, "MANY", 60)
    file, read = a_file(tmp_path), answers.open_source
    first = prepare(file, tiny_folder, resolve())

    def never(*_: object, **__: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(answers, "open_source", never)
    again = prepare(file, tiny_folder, resolve())
    assert again.preflight == first.preflight
    assert again.source.notes == first.source.notes
    prepare(file, tiny_folder, resolve(values={"template": "plain"}))
    assert [len(list((home / "store").glob(f"{kind}-*"))) for kind in ("rows", "tokens")] == [1, 2]
    with pytest.raises(AssertionError, match="read again"):
        prepare(file, tiny_folder, resolve(values={"skip_bad": True}))
    monkeypatch.setattr(answers, "open_source", read)
    copied = shutil.copy(file, tmp_path / "copy.json")  # the same rows under another name
    assert prepare(copied, tiny_folder, resolve()).source.name == str(copied)
    assert len(list((home / "store").glob("rows-*"))) == 1
    made = json.loads(file.read_text())
    file.write_text(json.dumps([*made, {"instruction": "One more.", "output": "Yes."}]))
    assert len(prepare(file, tiny_folder, resolve()).source) == 61


def test_rows_that_are_left_out_have_the_place_in_their_own_file(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MANY", 60)
    for name in ("one.jsonl", "two.jsonl"):  # the same bytes
        made = [*rows(60), {"instruction": "No answer."}]
        (tmp_path / name).write_text("\n".join(map(json.dumps, made)))
        found = prepare(tmp_path / name, tiny_folder, resolve(values={"skip_bad": True}))
        assert isinstance(found.source.examples, ExampleStore)
        assert [(one.row, one.where) for one in found.source.rejected] == [(60, f"{name} line 61")]


@pytest.mark.parametrize("origins", [None, "damaged", [["rows.json row"], 60, "", "", ""]], ids=str)
def test_what_is_known_of_a_file_without_its_places_is_read_again(
    origins: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(sources, "MANY", 60)
    file = a_file(tmp_path)
    wanted = prepare(file, tiny_folder, resolve()).source
    (known,) = (home / "store" / "known").iterdir()
    written = json.loads(known.read_text())
    known.write_text(json.dumps({**written, "origins": origins}))
    found = prepare(file, tiny_folder, resolve()).source
    assert found.sha256 == wanted.sha256
    assert [found.origins.of(row) for row in (0, 59)] == ["rows.json row 0", "rows.json row 59"]
    assert json.loads(known.read_text()) == written


def test_notes_on_a_file_name_the_file_that_was_given(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the rows are known from another file, too, and are not read again."""
    monkeypatch.setattr(sources, "MANY", 60)
    (tmp_path / "rows.json").write_text(a_file(tmp_path).read_text(), encoding="utf-16-le")
    shutil.copy(tmp_path / "rows.json", tmp_path / "copy.json")
    for name in ("rows.json", "copy.json", "rows.json", "copy.json"):
        source = prepare(tmp_path / name, tiny_folder, resolve()).source
        assert isinstance(source.examples, ExampleStore)
        assert source.notes == (f"{tmp_path / name}: is UTF-16-LE without a byte order mark; read as such",)


def test_a_file_that_changes_while_it_is_read_is_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MANY", 60)
    file, hashed = a_file(tmp_path), sources.sha256_of
    raw = file.read_bytes()

    def meanwhile(path: Path) -> str:
        file.write_bytes(raw.replace(b"Double", b"Triple"))  # the rows have been read, and are hashed now
        return hashed(path)

    monkeypatch.setattr(sources, "sha256_of", meanwhile)
    with pytest.raises(DataError, match="has changed while it was read"):
        prepare(file, tiny_folder, resolve())
    monkeypatch.setattr(sources, "sha256_of", hashed)
    assert prepare(file, tiny_folder, resolve()).source.examples[0].instruction == "Triple the number 0."


def test_without_arrow_many_rows_stay_in_memory_and_the_extra_is_named(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MANY", 60)
    monkeypatch.setattr(sources, "has_arrow", lambda: False)
    found = prepare(a_file(tmp_path), tiny_folder, resolve())
    assert isinstance(found.source.examples, tuple)
    assert any("60 rows and their ids are held in memory" in note for note in found.preflight.notes)
    assert any("pip install 'instil[data]'" in note for note in found.preflight.notes)


def test_a_run_of_a_store_is_the_run_of_its_rows(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Losses, answers, split and screen; of very many rows the split is written as ranges, and read again."""
    file = a_file(tmp_path)
    settings = resolve(values={"epochs": 1, "max_new_tokens": 2, "eval_every": 3})
    known = run(file, tiny_folder, tmp_path / "known", settings)
    shown = [line for line in capsys.readouterr().err.splitlines() if "asked:" in line]
    monkeypatch.setattr(sources, "MANY", 60)
    monkeypatch.setattr(splits, "COMPACT_FROM", 60)
    found = run(file, tiny_folder, tmp_path / "found", settings)
    assert [line for line in capsys.readouterr().err.splitlines() if "asked:" in line] == shown != []
    assert "57. \ufffd[31m" in shown[0]
    ours, theirs = (read_metrics(one.path / "metrics.jsonl") for one in (found, known))
    assert [(one.train_loss, one.val_loss) for one in ours] == [(one.train_loss, one.val_loss) for one in theirs]
    assert (found.path / "responses/tuned.json").read_text() == (known.path / "responses/tuned.json").read_text()
    assert json.loads((found.path / "split.json").read_text())["train"] == {"ranges": [[0, 51]]}
    assert RunFolder(found.path).read_split() == RunFolder(known.path).read_split()
    assert 'order = "randperm"' in (found.path / "run.toml").read_text()
    inspected = inspect(str(file), str(tiny_folder), settings, [57])
    assert inspected.rows[0].example.row == 57


def test_steps_of_a_budget_of_tokens(tiny_folder: Path, tmp_path: Path) -> None:
    """Rows that are longer are told of and trained on by themselves; the book's order has no such steps."""
    made = rows(40)
    made[4]["output"] = "word " * 90
    settings = resolve(values={"batch_tokens": 120, "epochs": 1, "eval_every": 0})
    prepared = prepare(made, tiny_folder, settings)
    steps = len(prepared.training)
    lines = prepared.preflight.lines()
    assert (
        f"train.batch_tokens=120 makes {steps} steps of an epoch, with {34 / steps:.1f} rows each on average" in lines
    )
    assert "1 row is longer than that and makes a step of its own: 4" in lines
    done = run(made, tiny_folder, tmp_path / "run", settings, answers=False)
    assert done.steps == steps
    lengths = [min(len(row.ids) - 1, prepared.max_length) for row in prepared.rows["train"]]
    assert read_metrics(done.path / "metrics.jsonl")[-1].tokens_seen == sum(lengths)
    with pytest.raises(SettingsError, match=r"train\.batch_tokens is for train\.order=seeded"):
        prepare(made, tiny_folder, resolve(values={"batch_tokens": 120, "order": "book"}))
