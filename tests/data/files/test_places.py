"""What a name means: a file, several, a pattern, a folder, an address; and what is passed over is said."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from instil import downloads
from instil.data.files.places import absolute, paths_of, short_name
from instil.data.files.rows import open_rows, read_rows
from instil.data.sources import read_source
from instil.errors import DataError, UserError
from instil.recipes.run.run import finetune
from instil.tasks.pairs.source import read_pairs
from tests.data.files.writers import lines, one_list, parquet, table, zipped
from tests.file_server import FileServer, serving


def row(answer: str) -> dict[str, str]:
    return {"instruction": "Say it.", "output": answer}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of rows and much beside them."""
    inside = tmp_path / "rows"
    inside.mkdir()
    (inside / "b.jsonl").write_bytes(lines([row("3"), row("4")]))
    (inside / "a.csv").write_bytes(table()([row("1"), row("2")]))
    for name in ("README.md", "LICENSE", ".hidden.jsonl", "dataset_info.json", "tokenizer.json"):
        (inside / name).write_text('{"a": [1], "b": [2, 3]}', encoding="utf-8")
    (inside / "more").mkdir()
    return inside


def answers(data: str | Path) -> list[str]:
    return [one["output"] for one in read_rows(data)]


def test_all_data_files_of_a_folder_are_read_and_the_others_named(folder: Path) -> None:
    found = open_rows(folder)
    assert [one.value["output"] for one in found] == ["1", "2", "3", "4"]
    assert [one.where for one in found] == ["a.csv line 2", "a.csv line 3", "b.jsonl line 1", "b.jsonl line 2"]
    assert found.files == (folder / "a.csv", folder / "b.jsonl")
    assert found.notes == (
        f"{folder}: 2 files, one after another: a.csv, b.jsonl",
        f"{folder}: passed over: LICENSE, README.md, dataset_info.json, more/, tokenizer.json",
    )
    assert read_source(folder).notes[:2] == found.notes


def test_patterns(folder: Path) -> None:
    assert answers(f"{folder}/*.jsonl") == ["3", "4"]
    assert answers(f"{folder}/[ab].*") == ["1", "2", "3", "4"]
    assert answers(f"{folder}/*") == ["1", "2", "3", "4"]
    assert answers(f"{folder.parent}/**/*.csv") == ["1", "2"]
    (folder / "rows.txt").write_bytes(lines([row("5")]))
    assert answers(f"{folder}/*.txt") == ["5"]
    with pytest.raises(DataError, match="none that this is a pattern of"):
        read_rows(f"{folder}/*.parquet")


def test_several_with_commas_between(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert answers("b.jsonl,a.csv") == ["3", "4", "1", "2"]
    assert answers("b.jsonl, *.csv") == ["3", "4", "1", "2"]
    found = open_rows("b.jsonl,*.jsonl")
    assert len(list(found)) == 2
    assert "b.jsonl,*.jsonl: 1 file named more than once, read once" in found.notes
    assert len(read_rows("starter,b.jsonl")) == len(read_rows("starter")) + 2
    with pytest.raises(DataError, match=r"a\.csv,c\.csv: c\.csv: no such file.*did you mean a\.csv"):
        read_rows("a.csv,c.csv")


def test_a_file_that_is_there_is_meant_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.jsonl", "rows[1].jsonl", "x*.jsonl"):
        Path(name).write_bytes(lines([row(name)]))
        assert answers(name) == [name]
        assert answers(Path(name)) == [name]


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_bytes(lines([row(name)]))
    assert [one.where for one in open_rows(f"{tmp_path}/*/rows.jsonl")] == [
        f"{tmp_path}/one/rows.jsonl row 0",
        f"{tmp_path}/two/rows.jsonl row 0",
    ]


def test_folders_without_rows(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder without data files(.|\n)*of which one may be meant:\n.*rows"):
        read_rows(tmp_path)
    (tmp_path / "run.toml").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"a folder of a run, not of data; .*responses/tuned\.json"):
        read_rows(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:  # pragma: no cover
    path = tmp_path / "rows.json"
    path.write_bytes(one_list([row("a")]))
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read_rows(path)


def test_a_near_name_is_offered(folder: Path) -> None:
    with pytest.raises(DataError, match=r"did you mean b\.jsonl\?"):
        read_rows(folder / "bb.jsonl")


def test_a_name_on_the_hub_without_its_prefix() -> None:
    with pytest.raises(DataError, match="a data set on the hub is hf:me/rows"):
        read_rows("me/rows")
    with pytest.raises(DataError, match="is a page of the hub; its rows are hf:me/rows"):
        read_rows("https://huggingface.co/datasets/me/rows/viewer/default/train")


def test_equal_files_under_two_names_are_both_read(tmp_path: Path) -> None:
    """As the hub's client keeps them: one file, and a link for each name."""
    (tmp_path / "blob").write_bytes(lines([row("a")]))
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / "blob")
    assert answers(tmp_path) == ["a", "a"]


def test_a_long_look_at_what_was_fetched_is_shown(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("instil.data.files.places.LONG", 10)
    monkeypatch.setattr("instil.downloads.QUIET_FOR", -1.0)
    assert answers(f"{server.url}/rows.csv") == ["1", "2"]
    assert "looking at" in capsys.readouterr().err


def test_pairs_come_from_anywhere_too(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_bytes(table(";")([{"instruction": "a", "chosen": "b", "rejected": "c"}]))
    found = read_pairs(tmp_path / "pairs.csv")
    assert found.pairs[0].rejected == "c"
    assert "separated by semicolons" in found.notes[0]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("rows.json", "rows"), ("a/b/rows.jsonl.gz", "rows"), ("starter", "starter"), ("data/", "rows"),
        ("https://example.org/x/rows.parquet?token=a/b", "rows"), ("hf:me/rows@v1:main/test", "rows-v1-main-test"),
        ("a/*.csv,b.json", "csv-b"), ("model.v2", "model.v2"),
    ],
)  # fmt: skip
def test_runs_are_named_after_their_data(data: str, name: str) -> None:
    assert short_name(data) == name


def test_a_run_finds_its_data_from_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert absolute("a.csv") == str(folder / "a.csv")
    assert absolute(".") == str(folder)
    for data in ("a.csv,b.jsonl", "*.csv,b.jsonl", "*", ".", "starter,a.csv"):
        monkeypatch.chdir(folder)
        there, wanted = absolute(data), read_rows(data)
        monkeypatch.chdir(folder.parent)
        assert read_rows(there) == wanted
    assert absolute("starter") == absolute("hf:me/rows") == absolute("https://example.org/*.csv") == ""
    assert absolute("(rows in memory)") == ""


def test_what_is_read_is_known_before_anything_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert paths_of("*.csv,b.jsonl") == [Path("a.csv"), Path("b.jsonl")]
    assert {folder, folder / "a.csv"} <= set(paths_of(folder))
    assert folder / "more" not in paths_of(folder)  # where a run may be
    assert Path("more") not in paths_of("*")
    assert paths_of("starter") == paths_of("hf:me/rows") == paths_of("https://example.org/*.csv") == []
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (folder / "run.toml").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.csv"):
        finetune("*.csv,b.jsonl", model="nothing", out=folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before} == before


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    files = {
        "rows.csv": table()([row("1"), row("2")]),
        "rows.parquet": parquet([row("3")]),
        "rows.jsonl.gz": gzip.compress(lines([row("4")])),
        "rows.zip": zipped({"a.json": one_list([row("5")])}),
        "a,b.jsonl": lines([row("6")]),
    }
    with serving(**files) as running:
        monkeypatch.setattr(downloads, "FIRST_WAIT", 0.0)
        monkeypatch.setenv("INSTIL_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NO_PROXY", "*")
        yield running


def test_every_form_comes_from_an_address(server: FileServer) -> None:
    for name, wanted in {
        "rows.csv": ["1", "2"], "rows.parquet": ["3"], "rows.jsonl.gz": ["4"], "rows.zip": ["5"], "a,b.jsonl": ["6"],
    }.items():  # fmt: skip
        found = open_rows(f"{server.url}/{name}?download=true")
        assert [one.value["output"] for one in found] == wanted
        assert next(iter(found)).where.startswith(name)
    assert len(server.requests) == 5
    both = f"{server.url}/rows.csv?download=true,{server.url}/rows.parquet?download=true"
    assert answers(both) == ["1", "2", "3"]
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("a.parquet", parquet([row("a")])[:-3], "a Parquet file that is damaged or cut off"),
        ("a.csv", b"instruction,output\na\n", "rows that do not have 2 cells"),
        ("a.jsonl.gz", gzip.compress(lines([row("a")]))[:-3], "its gzip data end too early"),
        ("a.json", json.dumps({"error": "try later"}).encode(), "no list in it (keys 'error')"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "a pointer of Git LFS"),
    ],
)
def test_what_cannot_be_read_is_not_kept(server: FileServer, tmp_path: Path, name: str, body: bytes, says: str) -> None:
    server.files[name] = body
    url = f"{server.url}/{name}"
    with pytest.raises(DataError) as caught:
        read_rows(url)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{url}: could not be fetched")
    assert {one.name for one in (tmp_path / "home" / "data").iterdir()} == {".lock"}


def test_a_fetched_file_with_a_row_that_is_to_be_left_out_is_kept(server: FileServer) -> None:
    server.files["odd.jsonl"] = lines([row("1")]).rstrip() + b"\n{oops\n" + lines([row("2")])
    url = f"{server.url}/odd.jsonl"
    with pytest.raises(DataError, match="line 2 is not a JSON object"):
        read_source(url)
    source = read_source(url, skip_bad=True)
    assert [(one.row, one.where.split()[-1]) for one in source.rejected] == [(1, "2")]
    assert [one.output for one in source.examples] == ["1", "2"]


def test_a_path_as_windows_writes_it_is_told_as_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(DataError, match=r"no such file.*did you mean data/rows\.jsonl\?$"):
        open_rows("data\\rows.jsonl")
    with pytest.raises(DataError, match=r"no such file") as caught:
        open_rows("C:\\data\\rows.jsonl")
    assert "C:/" not in str(caught.value)
