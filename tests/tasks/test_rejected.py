"""Every row that is left out or cut is written down with its reason: by runs, by training, of answers and of pairs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import instil
from instil.data.store import sources
from instil.data.store.examples import ExampleStore
from instil.runs.card import data_card, licence
from instil.runs.folder import RunFolder
from instil.runs.report.report import refresh_report
from instil.settings.resolve import resolve
from instil.tasks.prepare import prepare
from instil.tasks.rejected import rejected_rows
from tests.conftest import rows

QUICK = {"max_steps": 1, "max_new_tokens": 2}


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which a row is unreadable, two are too long in their prompts and one in its answer."""
    data = rows(40)
    data[4] = {"instruction": "<b>Say</b> nothing."}
    data[5]["instruction"] = "long " * 100
    data[37]["output"] = "long " * 100
    data[38]["instruction"] = "long " * 600
    for row in data:
        row["task"] = "double" if row.get("input") else "twice"
    how = {"skip_bad": True, "max_length": 80, "licence": "CC0 <1.0>", **QUICK}
    return instil.finetune(data, model=tiny_folder, out=tmp_path_factory.mktemp("made") / "run", **how).path


def test_what_is_left_out_or_cut_is_written_down(made: Path) -> None:
    found = {line["row"]: line for line in lines(made)}
    assert [(row, line["outcome"], line["part"]) for row, line in found.items()] == [
        (4, "left out", ""),
        (5, "left out", "train"),
        (37, "cut", "validation"),
        (38, "left out", "validation"),
    ]
    assert found[4]["reason"] == "output is missing"
    assert found[5]["reason"].startswith("its prompt alone has 1")
    assert found[5]["remedy"].startswith("data.max_length=1")
    assert found[37]["outcome"] == "cut"
    assert "lie beyond data.max_length=80" in found[37]["reason"]
    assert "the model's context is 512" in found[38]["remedy"]
    assert all(line["reason"] and line["remedy"] for line in found.values())


def test_the_remedy_mends_it(tiny_folder: Path) -> None:
    data = rows(20)
    data[3]["output"] = "long " * 100
    (one,) = rejected_rows(prepare(data, tiny_folder, resolve(values={"max_length": 80})))
    enough = int(one.remedy.split()[0].removeprefix("data.max_length="))
    assert not list(rejected_rows(prepare(data, tiny_folder, resolve(values={"max_length": enough}))))
    assert list(rejected_rows(prepare(data, tiny_folder, resolve(values={"max_length": enough - 1}))))


def test_the_file_is_there_and_empty_where_nothing_was_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    run = instil.finetune(rows(12), model=tiny_folder, out=tmp_path / "run", **QUICK).path
    assert (run / "rejected.jsonl").read_bytes() == b""
    assert 'id="rejected"' not in (run / "report.html").read_text(encoding="utf-8")


def test_pairs_say_why(tiny_folder: Path) -> None:
    data = [{"instruction": f"Go {n}.", "chosen": f"Yes {n}.", "rejected": f"No {n}."} for n in range(20)]
    data[2]["rejected"] = "long " * 100
    data[3] |= {"chosen": "same " * 60 + "a", "rejected": "same " * 60 + "b"}
    data[4]["instruction"] = "long " * 100
    data[5]["rejected"] = data[5]["chosen"]
    settings = resolve(values={"objective": "dpo", "max_length": 80, "skip_bad": True})
    found = {one.row: one for one in rejected_rows(prepare(data, tiny_folder, settings))}
    assert {row: one.outcome for row, one in found.items()} == {5: "left out", 2: "cut", 3: "left out", 4: "left out"}
    assert "equal" in found[5].reason
    assert found[3].reason == "its two answers are equal within 80 tokens and prefer nothing"
    assert found[4].reason == "one of its answers lies beyond the 80 tokens that are kept"


def test_the_place_of_an_unreadable_row_is_its_line(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    kept = [json.dumps(row) for row in rows(6)]
    file.write_text("\n".join([kept[0], "", '{"instruction": "Say nothing."}', *kept[1:]]), encoding="utf-8")
    (one,) = rejected_rows(prepare(file, tiny_folder, resolve(values={"skip_bad": True})))
    assert (one.row, one.where, one.reason) == (1, "rows.jsonl line 3", "output is missing")


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "in a store"])
def test_lines_that_are_no_json_are_counted_and_written_down(
    kept: bool, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSTIL_HOME", str(tmp_path / "home"))
    if kept:
        monkeypatch.setattr(sources, "MANY", 20)
    file = tmp_path / "rows.jsonl"
    good = [json.dumps(row).encode() for row in rows(20)]
    file.write_bytes(b"\n".join([*good[:3], b"{oops", *good[3:9], b"caf\xe9", *good[9:], b'{"instruction": "Say']))
    for _ in range(2):
        prepared = prepare(file, tiny_folder, resolve(values={"skip_bad": True}))
        assert isinstance(prepared.source.examples, ExampleStore) == kept
        found = [*rejected_rows(prepared)]
        assert [(one.row, one.where) for one in found] == [(n, f"rows.jsonl line {n + 1}") for n in (3, 10, 22)]
        assert found[1].reason == "byte 4 of it (0xe9) is not UTF-8"
        assert found[2].reason.endswith("is the file cut off?")
        assert data_card(prepared, found)["rejected"]["left out"] == 3
        assert len(prepared.source) == 20
        said = "\n".join(prepared.preflight.lines())
        assert "row 3: is not a JSON object" in said
        assert "row 10: byte 4 of it (0xe9) is not UTF-8" in said


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "in a store"])
def test_every_row_that_is_left_out_or_cut_has_its_place(
    kept: bool, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, too long in its prompt, cut and dropped as a leak, from two files; twice, as stores are known again."""
    monkeypatch.setenv("INSTIL_HOME", str(tmp_path / "home"))
    if kept:
        monkeypatch.setattr(sources, "MANY", 40)
    data = rows(40)
    data[5]["instruction"] = "long " * 100
    data[7] = {"instruction": "Say nothing."}
    data[30]["output"] = "long " * 100
    data[35] = data[12]
    some = [json.dumps(row) for row in data[:10]]
    (tmp_path / "a.jsonl").write_text("\n".join([*some[:3], "", *some[3:]]))
    (tmp_path / "b.json").write_text(json.dumps(data[10:]))
    names = f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.json'}"
    for name in (names, names, f"{tmp_path / 'b.json'},{tmp_path / 'a.jsonl'}"):
        how = {"skip_bad": True, "leaks": "drop", "leak_threshold": 0.999, "max_length": 80, "split": "grouped"}
        how |= {"split": "book"} if name == names else {}
        prepared = prepare(name, tiny_folder, resolve(values=how))
        assert isinstance(prepared.source.examples, ExampleStore) == kept
        found = {one.where: one for one in rejected_rows(prepared)}
        first = {"a.jsonl line 7": 5, "a.jsonl line 9": 7, "b.json row 2": 12, "b.json row 20": 30}
        if name == names:
            assert {where: one.row for where, one in found.items()} == first
            assert [found[where].outcome for where in first] == ["left out", "left out", "left out", "cut"]
        else:
            assert found["a.jsonl line 7"].row == 35
            assert found["b.json row 20"].row == 20


def test_pairs_have_their_place(tiny_folder: Path, tmp_path: Path) -> None:
    data = [{"instruction": f"Go {n}.", "chosen": f"Yes {n}.", "rejected": f"No {n}."} for n in range(20)]
    data[2]["rejected"] = "long " * 100
    data[4]["instruction"] = "long " * 100
    data[5]["rejected"] = data[5]["chosen"]
    data[6].pop("chosen")
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        file.write("instruction,chosen,rejected\n")
        for row in data:
            file.write(",".join(f'"{row.get(key, "")}"' for key in ("instruction", "chosen", "rejected")) + "\n")
    settings = resolve(values={"objective": "dpo", "max_length": 80, "skip_bad": True})
    found = [*rejected_rows(prepare(tmp_path / "pairs.csv", tiny_folder, settings))]
    assert {one.row: one.where for one in found} == {n: f"pairs.csv line {n + 2}" for n in (2, 4, 5, 6)}


def test_training_rows_that_are_dropped_as_leaks_are_named(tiny_folder: Path) -> None:
    data = rows(20)
    data[17] = data[2]
    left = [*rejected_rows(prepare(data, tiny_folder, resolve(values={"leaks": "drop", "leak_threshold": 0.999})))]
    assert [(one.row, one.part) for one in left] == [(2, "train")]
    assert "row 17" in left[0].reason


def test_the_card_says_what_the_rows_are(made: Path) -> None:
    card = json.loads((made / "data.json").read_text(encoding="utf-8"))
    assert card["licence"] == "CC0 <1.0>"
    assert {part: card["rows"][part] for part in ("train", "test", "validation", "all")} == {
        "train": 33, "test": 3, "validation": 3, "all": 39,
    }  # fmt: skip
    assert card["kinds"]["train"] == {"twice": 17, "double": 16}
    assert card["shapes"]["instruction with input"] + card["shapes"]["instruction"] == 39
    assert card["rejected"]["left out"] == 3
    assert card["rejected"]["cut"] == 1
    assert sum(card["rejected"]["reasons"].values()) == 4
    assert len(card["rejected"]["reasons"]) == 3  # two prompts that are too long are one reason
    assert card["scripts"] == {"Latin": 1.0}
    assert card["lengths"]["max_length"] == 80
    assert 0 < card["tokens"]["supervised_share"] < 1
    assert len(card["hashes"]["rows"]) == 64
    assert card["files"] == []  # rows in memory


def test_the_report_shows_card_and_rejected_rows(made: Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "CC0 &lt;1.0&gt;" in page
    assert "output is missing" in page
    assert page.count('<tr><td class="name">5</td>') == 1
    assert "Rows that were left out or cut (4)" in page


def test_a_report_of_a_run_without_a_card_is_written(made: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(made, tmp_path / "old"))
    for name in ("data.json", "rejected.jsonl"):
        (old / name).unlink()
    refresh_report(RunFolder(old))
    page = (old / "report.html").read_text(encoding="utf-8")
    assert "<dt>licence</dt>" not in page
    assert "rows: 33 train" in page


def test_a_licence_is_said_or_known_and_never_guessed(tiny_folder: Path, data_file: Path) -> None:
    assert licence("rows.json", "MIT") == licence("starter", "MIT") == "MIT"
    assert "Apache-2.0" in licence("starter", "")
    assert licence("rows.json", "") == "not stated; say it with --set data.licence=..."
    card = data_card(prepare(str(data_file), tiny_folder, resolve()), ())
    assert card["files"] == [{"path": str(data_file), "bytes": data_file.stat().st_size}]
    folder = data_file.parent
    (folder / "more.json").write_bytes(data_file.read_bytes())
    (folder / "README.md").write_text("Not rows.")
    for several in (str(folder), f"{folder}/*.json", f"{folder}/more.json,{data_file}"):
        card = data_card(prepare(several, tiny_folder, resolve()), ())
        assert sorted(Path(file["path"]).name for file in card["files"]) == ["more.json", "rows.json"]
